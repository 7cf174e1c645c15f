//! How memory that two processes share is mapped and made present in little time. Used by `region`.
//!
//! Of what a connection takes to make, pages are the most: each is found, cleared and mapped twice. Three things make that cheaper. What is
//! in the file already is mapped sixteen pages at a time, by reading. Pages that are written with write(2) cost no fault. And where the system lets
//! shared memory have pages that are larger than the smallest (`/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled` says `advise`
//! or `always`; none do by default), there are few of them: then mappings begin where such a page can, and ours are asked for with it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::sys::{self, Populate};

const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";
/// No page is larger, where the smallest have 4 KiB.
const LARGEST_BYTES: usize = 2 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Maps the first `bytes` of a file, shared, for reading and writing.
pub(crate) fn map(file: &File, bytes: usize) -> io::Result<NonNull<u8>> {
    // Where a page of a huge-page file can begin is the kernel's affair.
    match are_large() && sys::huge_page_bytes(file).is_none() {
        true => sys::map_aligned(file, bytes, alignment(bytes)),
        false => sys::map(file, bytes),
    }
}

/// Before a memory file of our own is mapped: what makes its pages present soon.
pub(crate) fn prepare(file: &File, bytes: usize) -> io::Result<()> {
    // Such pages are small.
    if are_large() { Ok(()) } else { write_zeros(file, bytes) }
}

/// Makes every page of our own memory present, which has been prepared and mapped.
pub(crate) fn make_present(base: NonNull<u8>, bytes: usize) -> io::Result<()> {
    if are_large() {
        sys::want_large_pages(base, bytes);
    }
    sys::populate(base, bytes, Populate::MemoryFile)
}

fn write_zeros(file: &File, bytes: usize) -> io::Result<()> {
    for at in (0..bytes).step_by(ZEROS.len()) {
        let piece = ZEROS.get(..ZEROS.len().min(bytes - at)).unwrap_or(&ZEROS);
        file.write_all_at(piece, at as u64)?;
    }
    Ok(())
}

/// Where the largest page that fits into so many bytes can begin.
fn alignment(bytes: usize) -> usize {
    let most = bytes.clamp(1, LARGEST_BYTES);
    1 << most.ilog2()
}

/// Whether shared memory can have large pages, as the system was set when this was first asked.
fn are_large() -> bool {
    static ARE_LARGE: OnceLock<bool> = OnceLock::new();
    *ARE_LARGE.get_or_init(|| are_large_in(Path::new(SETTINGS)))
}

fn are_large_in(settings: &Path) -> bool {
    let is_on = |path: &Path, inherited: bool| {
        // All that it can be, the chosen one in brackets.
        let text = fs::read_to_string(path.join("shmem_enabled")).unwrap_or_default();
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
        match chosen {
            Some("always" | "within_size" | "advise" | "force") => true,
            Some("inherit") => inherited,
            _ => false,
        }
    };
    let of_all = is_on(settings, false);
    let sizes = fs::read_dir(settings).into_iter().flatten().flatten();
    sizes.map(|entry| entry.path()).any(|path| is_on(&path, of_all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_whether_pages_are_large() {
        let folder = std::env::temp_dir().join(format!("memif-pages-{}", std::process::id()));
        let size = folder.join("hugepages-64kB");
        fs::create_dir_all(&size).unwrap();
        assert!(!are_large_in(&folder), "nothing is said");
        let say = |path: &Path, text: &str| fs::write(path.join("shmem_enabled"), text).unwrap();
        for (of_all, of_size, expected) in [
            (
                "always within_size advise [never] deny force\n",
                "always inherit within_size advise [never]\n",
                false,
            ),
            (
                "always within_size advise [never] deny force\n",
                "always [inherit] within_size advise never\n",
                false,
            ),
            (
                "always within_size [advise] never deny force\n",
                "always [inherit] within_size advise never\n",
                true,
            ),
            (
                "always within_size advise [never] deny force\n",
                "always inherit within_size [advise] never\n",
                true,
            ),
            ("nonsense", "[", false),
        ] {
            say(&folder, of_all);
            say(&size, of_size);
            assert_eq!(are_large_in(&folder), expected, "{of_all}, {of_size}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_large_page_can_begin_where_a_mapping_does() {
        assert_eq!([1, 4096, 139_264, 5 << 20].map(alignment), [1, 4096, 131_072, 2 << 20]);
        for bytes in [4096, 139_264, 3 << 20] {
            let file = sys::sealed_memory(bytes as u64).unwrap();
            let base = sys::map_aligned(&file, bytes, alignment(bytes)).unwrap();
            assert_eq!(base.addr().get() % alignment(bytes), 0);
            // SAFETY: just mapped, and never used.
            unsafe { sys::unmap(base, bytes) };
        }
    }

    /// Writing to it later takes no fault, however it was made present.
    #[test]
    fn what_is_present_needs_no_fault() {
        const BYTES: usize = 600 << 10;
        let faults = || {
            // SAFETY: rusage is plain integers, for which all zero is a value; the kernel writes one.
            unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
                usage.ru_minflt
            }
        };
        let file = sys::sealed_memory(BYTES as u64).unwrap();
        prepare(&file, BYTES).unwrap();
        let ours = map(&file, BYTES).unwrap();
        make_present(ours, BYTES).unwrap();
        let theirs = map(&file, BYTES).unwrap();
        sys::populate(theirs, BYTES, Populate::MemoryFile).unwrap();
        // Nobody has written to this one.
        let untouched = sys::sealed_memory(BYTES as u64).unwrap();
        let untouched = map(&untouched, BYTES).unwrap();
        sys::populate(untouched, BYTES, Populate::MemoryFile).unwrap();
        let before = faults();
        for base in [ours, theirs, untouched] {
            for at in (0..BYTES).step_by(4096) {
                // SAFETY: inside the mapping.
                unsafe { base.add(at).write_volatile(1) };
            }
        }
        // AddressSanitizer's own memory, a byte for eight of ours, has a first touch, too.
        let shadow =
            if std::env::var_os("ASAN_OPTIONS").is_some() { 3 * (BYTES / (8 * 4096) + 2) } else { 0 };
        let faults = usize::try_from(faults() - before).unwrap();
        assert!(faults <= shadow, "{faults} faults");
        // SAFETY: mapped above, and not used any more.
        [ours, theirs, untouched].into_iter().for_each(|base| unsafe { sys::unmap(base, BYTES) });
    }
}
