//! Memory that is not written to swap.
//!
//! Locking is a property of pages, and is not counted: two keys on one page would take each other's lock away. So what is
//! held for long has a page of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use region::LockGuard;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A secret on a page of its own, which is locked where the system allows it.
pub(crate) struct Locked<T: ZeroizeOnDrop> {
    page: Box<Page<T>>,
    lock: Option<LockGuard>,
}

/// As large as a page of the common systems; the rest of it is never touched.
#[repr(align(16384))]
struct Page<T> {
    // Empty only while it is dropped.
    secret: Option<T>,
}

const PAGE_BYTES: usize = 16_384;

static REFUSED: AtomicBool = AtomicBool::new(false);

impl<T: ZeroizeOnDrop> Locked<T> {
    pub(crate) fn new(secret: T) -> Self {
        let page = Box::new(Page {
            secret: Some(secret),
        });
        // Larger pages than these would be shared with others.
        let lock = (region::page::size() <= PAGE_BYTES)
            .then(|| region::lock(&raw const *page, size_of::<Option<T>>()).ok())
            .flatten();
        if lock.is_none() {
            REFUSED.store(true, Ordering::Relaxed);
        }
        Self { page, lock }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.page.secret.as_ref()
    }
}

impl<T: ZeroizeOnDrop> Drop for Locked<T> {
    fn drop(&mut self) {
        // Erased while it is locked, unlocked while it is still ours.
        self.page.secret = None;
        self.lock = None;
    }
}

// What it holds erases itself where it lies, before the page is given back.
impl<T: ZeroizeOnDrop> ZeroizeOnDrop for Locked<T> {}

/// Whether the system has refused to lock the memory of a key since this process started. Such a key may be written to
/// swap.
#[must_use]
pub fn memory_lock_refused() -> bool {
    REFUSED.load(Ordering::Relaxed)
}

/// A few secret bytes that are held beyond a call, on a page of their own.
pub(crate) struct LockedBytes(Locked<Content>);

impl ZeroizeOnDrop for LockedBytes {}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Content {
    bytes: [u8; LockedBytes::MAX],
    length: usize,
}

impl LockedBytes {
    /// More than anything that is wrapped: a data key under a password has at most 128.
    pub(crate) const MAX: usize = 128;

    /// `None` for more than [`Self::MAX`] bytes.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let mut content = Content {
            bytes: [0; Self::MAX],
            length: bytes.len(),
        };
        content.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        // A move leaves bytes behind, which this erases.
        let locked = Locked::new(Content { ..content });
        content.zeroize();
        Some(Self(locked))
    }

    pub(crate) fn get(&self) -> Zeroizing<Vec<u8>> {
        let content = self.0.get();
        Zeroizing::new(
            content
                .and_then(|content| content.bytes.get(..content.length))
                .unwrap_or_default()
                .to_vec(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_page_of_its_own() {
        let held: Vec<_> = (0..4_u8)
            .map(|byte| LockedBytes::new(&[byte; 32]).unwrap())
            .collect();
        let mut pages: Vec<_> = held
            .iter()
            .map(|held| std::ptr::from_ref(held.0.get().unwrap()).addr() / PAGE_BYTES)
            .collect();
        pages.dedup();
        assert_eq!(pages.len(), held.len());
        for (byte, held) in (0..).zip(&held) {
            assert_eq!(held.get().as_slice(), [byte; 32]);
        }
        assert!(LockedBytes::new(&[0; LockedBytes::MAX + 1]).is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_secret_is_locked_in_memory_or_the_refusal_is_told() {
        let held = LockedBytes::new(&[1; 32]).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = status
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|kilobytes| kilobytes.trim().parse::<u32>().ok())
            .unwrap();
        assert!(locked >= 4 || memory_lock_refused(), "{locked} kB");
        assert!(held.0.lock.is_some() || memory_lock_refused());
    }
}
