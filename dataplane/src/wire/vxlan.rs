//! VXLAN (RFC 7348 §5).

use bytemuck::{Pod, Zeroable};

use super::split_header;
use crate::counters::DropReason;
use crate::types::Vni;

/// The 8-byte header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct VxlanHeader {
    flags: u8,
    reserved: [u8; 3],
    vni: [u8; 3],
    reserved2: u8,
}

const _: () = assert!(size_of::<VxlanHeader>() == VxlanHeader::LEN);

impl VxlanHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 8;
    /// The I flag: the VNI is valid.
    const FLAG_VNI: u8 = 0x08;

    /// What we send: I flag set, everything reserved zero.
    pub const fn new(vni: Vni) -> VxlanHeader {
        VxlanHeader { flags: VxlanHeader::FLAG_VNI, reserved: [0; 3], vni: vni.to_bytes(), reserved2: 0 }
    }

    /// The header and the inner frame. Reserved bits are ignored, as §5 asks; who minds them asks for them.
    ///
    /// # Errors
    /// [`DropReason::VxlanTruncated`] or [`DropReason::VxlanFlagUnset`].
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(&VxlanHeader, &[u8]), DropReason> {
        let (header, inner) = split_header::<VxlanHeader>(bytes).ok_or(DropReason::VxlanTruncated)?;
        if header.flags & VxlanHeader::FLAG_VNI == 0 {
            return Err(DropReason::VxlanFlagUnset);
        }
        Ok((header, inner))
    }

    /// Any reserved bit is set.
    pub fn has_reserved(&self) -> bool {
        (self.flags & !VxlanHeader::FLAG_VNI, self.reserved, self.reserved2) != (0, [0; 3], 0)
    }

    /// The network's number.
    #[inline]
    pub fn vni(&self) -> Vni {
        Vni::from_bytes(self.vni)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_rfcs_layout() {
        let header = VxlanHeader::new(Vni::new(0x123456).unwrap());
        assert_eq!(bytemuck::bytes_of(&header), [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn reserved_bits_are_ignored_and_the_i_flag_is_needed() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0, 0, 42, 0xff, 9];
        let (header, inner) = VxlanHeader::split(&bytes).unwrap();
        assert_eq!((header.vni().get(), inner), (42, &[9][..]));
        for bit in 0..64 {
            let mut header =
                *bytemuck::bytes_of(&VxlanHeader::new(Vni::new(42).unwrap())).first_chunk::<8>().unwrap();
            header[bit / 8] ^= 0x80 >> (bit % 8);
            let Ok((header, _)) = VxlanHeader::split(&header) else { continue };
            let is_reserved = !(32..56).contains(&bit);
            assert_eq!(header.has_reserved(), is_reserved, "bit {bit}");
        }
        let bytes = [0xf7, 0, 0, 0, 0, 0, 42, 0];
        assert_eq!(VxlanHeader::split(&bytes).err(), Some(DropReason::VxlanFlagUnset));
        assert_eq!(VxlanHeader::split(&bytes[..7]).err(), Some(DropReason::VxlanTruncated));
    }
}
