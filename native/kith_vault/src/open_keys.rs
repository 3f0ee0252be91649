use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::{key_encryption_key::Made, memory::LockedBytes};

/// How many data keys that took a call to a key service are kept open, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CacheLimits {
    /// The most keys. One more, and the one that was used longest ago goes.
    pub keys: usize,
    /// How long a key is kept after it was opened, however often it is used: for so long a key that the service refuses
    /// from now on still works here.
    pub lifetime: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            keys: 1_000,
            lifetime: Duration::from_secs(300),
        }
    }
}

/// What a key service has opened, data keys nearly always, and keys it has made that wait for something to seal. Both are
/// zeroized when they leave.
#[derive(Default)]
pub(crate) struct OpenKeys {
    limits: CacheLimits,
    // Not poisoned by a panic, which leaves nothing half-done: each change is one step.
    inner: std::panic::AssertUnwindSafe<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    open: HashMap<Box<[u8]>, Entry<Arc<LockedBytes>>>,
    made: HashMap<Box<[u8]>, Entry<Vec<Made>>>,
    uses: u64,
}

struct Entry<T> {
    value: T,
    since: Instant,
    used: u64,
}

impl OpenKeys {
    pub(crate) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// What lies in something wrapped, by everything that was authenticated when it opened.
    pub(crate) fn get(&self, name: &[u8], now: Instant) -> Option<Zeroizing<Vec<u8>>> {
        let inner = &mut *self.inner.lock();
        inner.uses += 1;
        let entry = inner.open.get_mut(name)?;
        if now.duration_since(entry.since) >= self.limits.lifetime {
            inner.open.remove(name);
            return None;
        }
        entry.used = inner.uses;
        Some(entry.value.get())
    }

    pub(crate) fn contains(&self, name: &[u8], now: Instant) -> bool {
        self.get(name, now).is_some()
    }

    pub(crate) fn remove(&self, name: &[u8]) {
        self.inner.lock().open.remove(name);
    }

    pub(crate) fn put(&self, name: Box<[u8]>, key: Arc<LockedBytes>, now: Instant) {
        let inner = &mut *self.inner.lock();
        inner.uses += 1;
        let used = inner.uses;
        insert(&mut inner.open, name, key, used, self.limits, now);
    }

    /// Keeps what wraps next in a place, for once. Several may be made for a place at a time, by as many who wait for them.
    pub(crate) fn keep_made(&self, place: Box<[u8]>, made: Made, now: Instant) {
        let inner = &mut *self.inner.lock();
        inner.uses += 1;
        let used = inner.uses;
        let mut all = match inner.made.remove(&place) {
            Some(entry) if now.duration_since(entry.since) < self.limits.lifetime => entry.value,
            _ => Vec::new(),
        };
        if all.len() == MADE_FOR_A_PLACE {
            all.remove(0);
        }
        all.push(made);
        insert(&mut inner.made, place, all, used, self.limits, now);
    }

    pub(crate) fn take_made(&self, place: &[u8], now: Instant) -> Option<Made> {
        let inner = &mut *self.inner.lock();
        let entry = inner.made.get_mut(place)?;
        let made = (now.duration_since(entry.since) < self.limits.lifetime)
            .then(|| entry.value.pop())
            .flatten();
        if made.is_none() || entry.value.is_empty() {
            inner.made.remove(place);
        }
        made
    }

    /// Drops what is too old, so that a key nobody uses any more does not stay.
    pub(crate) fn sweep(&self, now: Instant) {
        let young = |since: Instant| now.duration_since(since) < self.limits.lifetime;
        let inner = &mut *self.inner.lock();
        inner.open.retain(|_, entry| young(entry.since));
        inner.made.retain(|_, entry| young(entry.since));
    }

    pub(crate) fn clear(&self) {
        let inner = &mut *self.inner.lock();
        inner.open.clear();
        inner.made.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().open.len()
    }
}

/// More than calls to a service run at once.
const MADE_FOR_A_PLACE: usize = 64;

fn insert<T>(
    map: &mut HashMap<Box<[u8]>, Entry<T>>,
    name: Box<[u8]>,
    value: T,
    used: u64,
    limits: CacheLimits,
    now: Instant,
) {
    if limits.keys == 0 {
        return;
    }
    if map.len() >= limits.keys && !map.contains_key(&name) {
        map.retain(|_, entry| now.duration_since(entry.since) < limits.lifetime);
    }
    // Walks over all of them. It happens beside a call over a socket.
    while map.len() >= limits.keys && !map.contains_key(&name) {
        let Some(oldest) = map
            .iter()
            .min_by_key(|(_, entry)| entry.used)
            .map(|(name, _)| name.clone())
        else {
            break;
        };
        map.remove(&oldest);
    }
    map.insert(
        name,
        Entry {
            value,
            since: now,
            used,
        },
    );
}

impl fmt::Debug for OpenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limits, inner: _ } = self;
        f.debug_struct("OpenKeys")
            .field("limits", limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead_key::KEY_BYTES;

    fn key(number: u8) -> Arc<LockedBytes> {
        Arc::new(LockedBytes::new(&[number; KEY_BYTES]).unwrap())
    }

    fn open_keys(keys: usize) -> OpenKeys {
        OpenKeys::new(CacheLimits {
            keys,
            lifetime: Duration::from_secs(10),
        })
    }

    fn name(number: u8) -> Box<[u8]> {
        [number].into()
    }

    #[test]
    fn of_too_many_keys_the_one_used_longest_ago_goes_and_is_dropped() {
        let (open, now) = (open_keys(2), Instant::now());
        let (first, second) = (key(1), key(2));
        open.put(name(1), Arc::clone(&first), now);
        open.put(name(2), Arc::clone(&second), now);
        assert!(open.get(&[1], now).is_some());
        open.put(name(3), key(3), now);
        assert!(open.get(&[2], now).is_none());
        assert!(open.get(&[1], now).is_some());
        assert!(open.get(&[3], now).is_some());
        assert_eq!(
            (Arc::strong_count(&first), Arc::strong_count(&second)),
            (2, 1)
        );
    }

    #[test]
    fn a_key_is_kept_for_its_lifetime_however_often_it_is_used() {
        let (open, now) = (open_keys(2), Instant::now());
        let first = key(1);
        open.put(name(1), Arc::clone(&first), now);
        assert!(open.get(&[1], now + Duration::from_millis(9_999)).is_some());
        assert!(open.get(&[1], now + Duration::from_secs(10)).is_none());
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn a_sweep_drops_the_old_and_keeps_the_young() {
        let (open, now) = (open_keys(3), Instant::now());
        open.put(name(1), key(1), now);
        open.put(name(2), key(2), now + Duration::from_secs(5));
        open.keep_made(name(3), Made::Fallback, now);
        open.sweep(now + Duration::from_secs(11));
        assert_eq!(open.len(), 1);
        assert!(
            open.take_made(&[3], now + Duration::from_secs(11))
                .is_none()
        );
    }

    #[test]
    fn what_was_made_is_given_out_once() {
        let (open, now) = (open_keys(3), Instant::now());
        open.keep_made(name(1), Made::Fallback, now);
        open.keep_made(name(1), Made::Fallback, now);
        assert!(open.take_made(&[1], now).is_some());
        assert!(open.take_made(&[1], now).is_some());
        assert!(open.take_made(&[1], now).is_none());
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let (open, now) = (open_keys(0), Instant::now());
        open.put(name(1), key(1), now);
        assert!(open.get(&[1], now).is_none());
    }
}
