//! What the stages look up by place: a row for each, and where nothing is, one that matches nothing. So nobody asks, for each packet,
//! whether something is there.

use std::marker::PhantomData;

use crate::plan::{PlaceId, Places};

/// What stands where nothing is.
pub(super) trait Nothing {
    /// No frame is for it, and nothing comes from it.
    fn nothing() -> Self;
}

/// A row for each place; one that matches nothing where nothing is.
#[derive(Clone, Debug)]
pub struct Rows<I, T> {
    rows: Box<[T]>,
    /// Something is there.
    taken: Box<[bool]>,
    id: PhantomData<I>,
}

#[allow(private_bounds, reason = "what is nothing is for the tables to know")]
impl<I: PlaceId, T: Nothing> Rows<I, T> {
    /// The row of a place below [`end`](Self::end).
    #[inline]
    pub fn get(&self, id: I) -> Option<&T> {
        self.rows.get(id.place())
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.rows.get_mut(id.place())
    }

    /// Something is there.
    pub(super) fn is_there(&self, id: I) -> bool {
        self.taken.get(id.place()).copied().unwrap_or(false)
    }

    /// All that are there, by place.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> + Clone {
        let rows = self.rows.iter().zip(&self.taken).enumerate();
        rows.filter(|(_, (_, is_taken))| **is_taken).map(|(index, (row, _))| (I::at(index), row))
    }

    /// The same without their places.
    pub fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.iter().map(|(_, row)| row)
    }

    /// Places are below this.
    pub fn end(&self) -> usize {
        self.rows.len()
    }

    /// Something has this place from now on, or nothing.
    pub(super) fn set(&mut self, id: I, row: Option<T>) {
        self.reach(id.place() + 1);
        if let (Some(place), Some(is_taken)) = (self.rows.get_mut(id.place()), self.taken.get_mut(id.place()))
        {
            *is_taken = row.is_some();
            *place = row.unwrap_or_else(T::nothing);
        }
    }

    /// There are so many places at least. Before many are [set](Self::set): each that is beyond the end copies all.
    pub(super) fn reach(&mut self, places: usize) {
        if places > self.rows.len() {
            let mut rows = std::mem::take(&mut self.rows).into_vec();
            rows.resize_with(places, T::nothing);
            let mut taken = std::mem::take(&mut self.taken).into_vec();
            taken.resize(places, false);
            (self.rows, self.taken) = (rows.into(), taken.into());
        }
    }

    /// One for each of a list.
    pub(super) fn of<U>(places: &Places<I, U>, mut row: impl FnMut(I, &U) -> T) -> Rows<I, T> {
        let ids = || (0..places.end()).map(I::at);
        Rows {
            rows: ids().map(|id| places.get(id).map_or_else(T::nothing, |its| row(id, its))).collect(),
            taken: ids().map(|id| places.get(id).is_some()).collect(),
            id: PhantomData,
        }
    }
}

/// Of tables in tests and measurements, where it is known what is there.
impl<I, T> std::ops::Index<usize> for Rows<I, T> {
    type Output = T;

    #[allow(clippy::indexing_slicing, reason = "an index is for who knows that something is there")]
    fn index(&self, index: usize) -> &T {
        &self.rows[index]
    }
}

impl<I, T> std::ops::IndexMut<usize> for Rows<I, T> {
    #[allow(clippy::indexing_slicing, reason = "an index is for who knows that something is there")]
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.rows[index]
    }
}
