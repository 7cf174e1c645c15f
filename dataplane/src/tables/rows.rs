//! What the stages look up by place: a row for each, and where nothing is, one that matches nothing. So nobody asks, for each packet,
//! whether something is there.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::plan::{PlaceId, Places};

/// What stands where nothing is.
pub(crate) trait Nothing: Clone {
    /// No frame is for it, and nothing comes from it.
    fn nothing() -> Self;
    /// It is that.
    fn is_nothing(&self) -> bool;
}

/// A row for each place; one that matches nothing where nothing is. A copy shares all of them, and has its own once one is changed: for what
/// few things are, and often looked up.
#[derive(Clone, Debug)]
pub struct Rows<I, T> {
    rows: Arc<[T]>,
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
        Arc::make_mut(&mut self.rows).get_mut(id.place())
    }

    /// All that are there, by place.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> + Clone {
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| !row.is_nothing()).map(|(index, row)| (I::at(index), row))
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
        if let Some(place) = self.get_mut(id) {
            *place = row.unwrap_or_else(T::nothing);
        }
    }

    /// There are so many places at least. Before many are [set](Self::set): each that is beyond the end copies all.
    pub(super) fn reach(&mut self, places: usize) {
        if places > self.rows.len() {
            let nothing = std::iter::repeat_with(T::nothing).take(places - self.rows.len());
            self.rows = self.rows.iter().cloned().chain(nothing).collect();
        }
    }

    /// One for each of a list.
    pub(super) fn of<U>(places: &Places<I, U>, mut row: impl FnMut(I, &U) -> T) -> Rows<I, T> {
        let ids = || (0..places.end()).map(I::at);
        Rows {
            rows: ids().map(|id| places.get(id).map_or_else(T::nothing, |its| row(id, its))).collect(),
            id: PhantomData,
        }
    }
}

/// Rows of a [`Chunks`] that are copied together: some KB; and there are some hundred pointers at most.
const CHUNK: usize = 512;

/// The same for what there are many of: a copy shares the chunks, and has its own of those that are changed. So a change costs the same
/// however many rows there are, but for a pointer for each chunk; and a look-up costs one load more.
#[derive(Clone, Debug)]
pub struct Chunks<I, T> {
    /// Each with [`CHUNK`] rows.
    chunks: Box<[Arc<[T]>]>,
    end: usize,
    id: PhantomData<I>,
}

#[allow(private_bounds, reason = "what is nothing is for the tables to know")]
impl<I: PlaceId, T: Nothing> Chunks<I, T> {
    /// The row of a place. Beyond [`end`](Self::end) there may be one that matches nothing.
    #[inline]
    pub fn get(&self, id: I) -> Option<&T> {
        self.chunks.get(id.place() / CHUNK)?.get(id.place() % CHUNK)
    }

    /// All that are there, by place.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> + Clone {
        let rows = self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate();
        rows.filter(|(_, row)| !row.is_nothing()).map(|(index, row)| (I::at(index), row))
    }

    /// Places are below this.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Something has this place from now on, or nothing.
    pub(crate) fn set(&mut self, id: I, row: Option<T>) {
        self.reach(id.place() + 1);
        let chunk = self.chunks.get_mut(id.place() / CHUNK).map(Arc::make_mut);
        if let Some(place) = chunk.and_then(|chunk| chunk.get_mut(id.place() % CHUNK)) {
            *place = row.unwrap_or_else(T::nothing);
        }
    }

    /// There are so many places at least.
    fn reach(&mut self, places: usize) {
        self.end = self.end.max(places);
        let needed = places.div_ceil(CHUNK);
        if self.chunks.len() < needed {
            let nothing: Arc<[T]> = std::iter::repeat_with(T::nothing).take(CHUNK).collect();
            let mut chunks = std::mem::take(&mut self.chunks).into_vec();
            chunks.resize(needed, nothing);
            self.chunks = chunks.into();
        }
    }

    /// One for each of a list.
    pub(crate) fn of<U>(places: &Places<I, U>, mut row: impl FnMut(I, &U) -> T) -> Chunks<I, T> {
        let mut chunks = Chunks { chunks: Box::default(), end: 0, id: PhantomData };
        chunks.reach(places.end());
        places.iter().for_each(|(id, its)| chunks.set(id, Some(row(id, its))));
        chunks
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

impl<I, T: Clone> std::ops::IndexMut<usize> for Rows<I, T> {
    #[allow(clippy::indexing_slicing, reason = "an index is for who knows that something is there")]
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut Arc::make_mut(&mut self.rows)[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EndpointId;

    impl Nothing for u32 {
        fn nothing() -> u32 {
            0
        }

        fn is_nothing(&self) -> bool {
            *self == 0
        }
    }

    #[test]
    fn a_copy_has_its_own_of_what_changes_and_shares_the_rest() {
        let mut places: Places<EndpointId, u32> = Places::default();
        for id in [0, 511, 512, 4000] {
            places.set(EndpointId(id), Some(u32::from(id) + 1));
        }
        let first = Chunks::of(&places, |_, value| *value);
        let mut second = first.clone();
        second.set(EndpointId(512), None);
        second.set(EndpointId(513), Some(9));
        second.set(EndpointId(8000), Some(7));
        let all = |chunks: &Chunks<EndpointId, u32>| {
            (chunks.end(), chunks.iter().map(|(id, value)| (id.0, *value)).collect::<Vec<_>>())
        };
        assert_eq!(all(&first), (4001, vec![(0, 1), (511, 512), (512, 513), (4000, 4001)]));
        assert_eq!(all(&second), (8001, vec![(0, 1), (511, 512), (513, 9), (4000, 4001), (8000, 7)]));
        let shared: Vec<bool> =
            first.chunks.iter().zip(&second.chunks).map(|(one, other)| Arc::ptr_eq(one, other)).collect();
        assert_eq!(shared, [true, false, true, true, true, true, true, true]);
        assert_eq!(
            [512, 6000, 8191, 8192].map(|id| second.get(EndpointId(id))),
            [Some(&0), Some(&0), Some(&0), None]
        );
    }
}
