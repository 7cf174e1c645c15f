//! A list with gaps: what is removed leaves its place to be used again, and everything else keeps its index. Networks and endpoints come
//! and go while workers know them by these indexes.

use std::marker::PhantomData;

use crate::types::{EndpointId, NetworkId};

/// The index of a place, as a type of its own.
pub trait PlaceId: Copy {
    /// From the index.
    fn at(index: usize) -> Self;
    /// The index.
    fn place(self) -> usize;
}

impl PlaceId for NetworkId {
    fn at(index: usize) -> NetworkId {
        NetworkId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    fn place(self) -> usize {
        self.index()
    }
}

impl PlaceId for EndpointId {
    fn at(index: usize) -> EndpointId {
        EndpointId(u16::try_from(index).unwrap_or(u16::MAX))
    }

    fn place(self) -> usize {
        self.index()
    }
}

/// A list with gaps. There is no iterator over values alone that could be counted along: an index is only ever what
/// [`iter`](Self::iter) says.
#[derive(Clone, Debug)]
pub struct Places<I, T> {
    places: Vec<Option<T>>,
    taken: usize,
    id: PhantomData<I>,
}

impl<I: PlaceId, T> Places<I, T> {
    /// What is there.
    pub fn get(&self, id: I) -> Option<&T> {
        self.places.get(id.place())?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.places.get_mut(id.place())?.as_mut()
    }

    /// All that are there, by index.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (I, &T)> + Clone {
        self.places.iter().enumerate().filter_map(|(index, place)| Some((I::at(index), place.as_ref()?)))
    }

    /// The same without their indexes.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &T> + Clone {
        self.places.iter().flatten()
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten()
    }

    /// How many are there.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// None is.
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Indexes are below this: those that are there, and gaps between them.
    pub fn end(&self) -> usize {
        self.places.len()
    }

    /// Puts something in a place, or takes what is there out. What was there.
    pub fn set(&mut self, id: I, value: Option<T>) -> Option<T> {
        if value.is_some() && self.places.len() <= id.place() {
            self.places.resize_with(id.place() + 1, || None);
        }
        let place = self.places.get_mut(id.place())?;
        self.taken += usize::from(value.is_some());
        let before = std::mem::replace(place, value);
        self.taken -= usize::from(before.is_some());
        before
    }

    /// Behind all others.
    pub fn push(&mut self, value: T) {
        self.places.push(Some(value));
        self.taken += 1;
    }

    /// Something for each that is there, with the same index.
    pub fn map<U>(&self, mut each: impl FnMut(I, &T) -> U) -> Places<I, U> {
        let places = self.places.iter().enumerate();
        Places {
            places: places.map(|(index, place)| Some(each(I::at(index), place.as_ref()?))).collect(),
            taken: self.taken,
            id: PhantomData,
        }
    }

    /// The first.
    pub fn first(&self) -> Option<&T> {
        self.values().next()
    }
}

impl<I, T> Default for Places<I, T> {
    fn default() -> Places<I, T> {
        Places { places: Vec::new(), taken: 0, id: PhantomData }
    }
}

/// Of a plan's beginning, before anything came or went.
impl<I, T> std::ops::Index<usize> for Places<I, T> {
    type Output = T;

    #[allow(
        clippy::indexing_slicing,
        clippy::panic,
        reason = "an index is for who knows that something is there"
    )]
    fn index(&self, index: usize) -> &T {
        match &self.places[index] {
            Some(value) => value,
            None => panic!("nothing is at {index}"),
        }
    }
}

impl<I, T> std::ops::IndexMut<usize> for Places<I, T> {
    #[allow(
        clippy::indexing_slicing,
        clippy::panic,
        reason = "an index is for who knows that something is there"
    )]
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.places[index] {
            Some(value) => value,
            None => panic!("nothing is at {index}"),
        }
    }
}

impl<I: PlaceId, T> From<Vec<T>> for Places<I, T> {
    /// Without gaps.
    fn from(values: Vec<T>) -> Places<I, T> {
        values.into_iter().collect()
    }
}

impl<I: PlaceId, T> FromIterator<T> for Places<I, T> {
    fn from_iter<V: IntoIterator<Item = T>>(values: V) -> Places<I, T> {
        let places: Vec<Option<T>> = values.into_iter().map(Some).collect();
        Places { taken: places.len(), places, id: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_keeps_its_index_whatever_comes_and_goes() {
        let mut places: Places<NetworkId, char> = ['a', 'b', 'c'].into_iter().collect();
        assert_eq!(places.set(NetworkId(1), None), Some('b'));
        assert_eq!(places.set(NetworkId(1), None), None);
        assert_eq!((places.len(), places.end(), places.get(NetworkId(1))), (2, 3, None));
        assert_eq!(places.iter().collect::<Vec<_>>(), [(NetworkId(0), &'a'), (NetworkId(2), &'c')]);
        assert_eq!(places.set(NetworkId(5), Some('f')), None);
        assert_eq!(places.set(NetworkId(2), Some('C')), Some('c'));
        assert_eq!((places.len(), places.end()), (3, 6));
        assert_eq!(places.values().collect::<String>(), "aCf");
        assert_eq!(places.set(NetworkId(9), None), None);
        assert_eq!(places.end(), 6, "nothing was there");
    }
}
