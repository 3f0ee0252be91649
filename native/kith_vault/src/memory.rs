//! Memory that is not written to swap.
//!
//! Locking is a property of pages, and is not counted: two keys on one page would take each other's lock away. So a key
//! that is held for long has a page of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use aes_gcm::Aes256Gcm;
use region::LockGuard;
use zeroize::ZeroizeOnDrop;

/// A key on a page of its own, which is locked where the system allows it.
pub(crate) struct LockedKey {
    page: Box<Page>,
    lock: Option<LockGuard>,
}

/// As large as a page of the common systems; the rest of it is never touched.
#[repr(align(16384))]
struct Page {
    // Empty only while it is dropped.
    key: Option<Aes256Gcm>,
}

const PAGE_BYTES: usize = 16_384;

static REFUSED: AtomicBool = AtomicBool::new(false);

impl LockedKey {
    pub(crate) fn new(key: Aes256Gcm) -> Self {
        let page = Box::new(Page { key: Some(key) });
        // Larger pages than these would be shared with others.
        let lock = (region::page::size() <= PAGE_BYTES)
            .then(|| region::lock(&raw const *page, size_of::<Aes256Gcm>()).ok())
            .flatten();
        if lock.is_none() {
            REFUSED.store(true, Ordering::Relaxed);
        }
        Self { page, lock }
    }

    pub(crate) fn get(&self) -> Option<&Aes256Gcm> {
        self.page.key.as_ref()
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        // Erased while it is locked, unlocked while it is still ours.
        self.page.key = None;
        self.lock = None;
    }
}

// The cipher erases itself where it lies, before the page is given back.
impl ZeroizeOnDrop for LockedKey {}

/// Whether the system has refused to lock the memory of a key since this process started. Such a key may be written to
/// swap.
#[must_use]
pub fn memory_lock_refused() -> bool {
    REFUSED.load(Ordering::Relaxed)
}
