//! What a key service has a part in, with a service that is in this process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kith_vault::{
    CacheLimits, Cipher, Context, KeyId, KeyService, LockError, PasswordParameters,
    ServiceCiphertext, ServiceError, ServiceKey, Source, Vault, VaultError, is_locked, wrapped_by,
    wrapped_key_info,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

/// It hides what it is given by a mask alone, and checks nothing: whatever is bound is bound by the vault.
#[derive(Default)]
struct Careless {
    away: AtomicBool,
    calls: AtomicU32,
}

impl Careless {
    fn answer<T>(&self, value: T) -> Result<T, ServiceError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match self.away.load(Ordering::Relaxed) {
            true => Err(ServiceError::Unavailable),
            false => Ok(value),
        }
    }
}

fn masked(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ 0x5a).collect()
}

impl KeyService for Careless {
    fn create(&self, place: &str) -> Result<ServiceKey, ServiceError> {
        self.answer(ServiceKey {
            id: place.to_owned(),
            wrapped: vec![7; 60],
        })
    }

    fn encrypt(&self, _: &str, text: &[u8], _: &[u8]) -> Result<ServiceCiphertext, ServiceError> {
        self.answer(ServiceCiphertext {
            bytes: masked(text),
            key_version: 3,
        })
    }

    fn decrypt(
        &self,
        _: &str,
        ciphertext: &ServiceCiphertext,
        _: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
        self.answer(Zeroizing::new(masked(&ciphertext.bytes)))
    }
}

struct Served {
    vault: Vault,
    service: Arc<Careless>,
    rng: ChaCha20Rng,
}

fn served(current: &str, fallback: Option<&str>) -> Served {
    let id = |id| KeyId::new(id).unwrap();
    let service = Arc::new(Careless::default());
    let shared: Arc<dyn KeyService> = Arc::<Careless>::clone(&service);
    let keys = vec![
        (id("kms"), Source::Service(shared, fallback.map(id))),
        (id("local"), Source::Key(Zeroizing::new(vec![1; 32]))),
    ];
    Served {
        vault: Vault::new(id(current), keys).unwrap(),
        service,
        rng: ChaCha20Rng::from_seed([5; 32]),
    }
}

fn anna() -> Context {
    Context::new("data-key").bytes("anna")
}

fn cheap() -> PasswordParameters {
    PasswordParameters::new(64, 1, 1).unwrap()
}

impl Served {
    fn create(&mut self) -> Vec<u8> {
        assert_eq!(
            self.vault.prepare(&mut self.rng, &anna(), false),
            Ok(true),
            "the service is there"
        );
        self.vault.create_data_key(&mut self.rng, &anna()).unwrap()
    }

    fn lock(&mut self) -> Vec<u8> {
        self.vault.prepare(&mut self.rng, &anna(), false).unwrap();
        let (locked, _key) = self
            .vault
            .create_locked_data_key(&mut self.rng, &anna(), cheap(), b"password")
            .unwrap();
        locked
    }

    fn calls(&self) -> u32 {
        self.service.calls.load(Ordering::Relaxed)
    }
}

#[test]
fn only_fetch_and_prepare_ask_the_service() {
    let mut kms = served("kms", None);
    assert_eq!(
        kms.vault
            .create_data_key(&mut kms.rng, &anna())
            .unwrap_err(),
        VaultError::Unmade
    );
    let wrapped = kms.create();
    let row = kms.vault.open_data_key(&anna(), &wrapped).unwrap();
    let row = row.seal(&mut kms.rng, &anna(), b"text").unwrap();
    // What was made is for once.
    assert_eq!(
        kms.vault
            .create_data_key(&mut kms.rng, &anna())
            .unwrap_err(),
        VaultError::Unmade
    );
    kms.vault.forget();
    let calls = kms.calls();
    assert_eq!(
        kms.vault.open_data_key(&anna(), &wrapped).unwrap_err(),
        VaultError::Cold
    );
    assert_eq!(kms.calls(), calls);
    kms.vault.fetch(&anna(), &wrapped).unwrap();
    kms.vault.fetch(&anna(), &wrapped).unwrap();
    assert_eq!(kms.calls(), calls + 1);
    let key = kms.vault.open_data_key(&anna(), &wrapped).unwrap();
    assert_eq!(key.open(&anna(), &row).unwrap().as_slice(), b"text");

    let info = wrapped_key_info(&wrapped).unwrap();
    assert_eq!(info.key_encryption_key_id.as_str(), "kms");
    assert_eq!(info.data_key_id, key.id());
    assert_eq!(info.service.unwrap().1, 3);
}

#[test]
fn a_place_is_bound_here_whatever_the_service_decrypts() {
    let mut kms = served("kms", None);
    let wrapped = kms.create();
    let ben = Context::new("data-key").bytes("ben");
    assert_eq!(
        kms.vault.fetch(&ben, &wrapped).unwrap_err(),
        VaultError::CorruptedState
    );
    // While it is open for whom it belongs to, too.
    assert_eq!(
        kms.vault.open_data_key(&ben, &wrapped).unwrap_err(),
        VaultError::Cold
    );
}

#[test]
fn a_locked_key_takes_the_service_and_the_password() {
    let mut kms = served("kms", None);
    let locked = kms.lock();
    assert!(is_locked(&locked));
    let calls = kms.calls();
    // It says so without the service, and opens for nothing else.
    assert_eq!(
        kms.vault.open_data_key(&anna(), &locked).unwrap_err(),
        VaultError::Locked
    );
    assert_eq!(
        kms.vault.unlock(&anna(), &locked, b"password").unwrap_err(),
        LockError::Vault(VaultError::Cold)
    );
    assert_eq!(kms.calls(), calls);
    kms.service.away.store(true, Ordering::Relaxed);
    assert_eq!(
        kms.vault.fetch(&anna(), &locked).unwrap_err(),
        VaultError::Unavailable
    );
    kms.service.away.store(false, Ordering::Relaxed);
    kms.vault.fetch(&anna(), &locked).unwrap();
    assert_eq!(
        kms.vault.unlock(&anna(), &locked, b"another").unwrap_err(),
        LockError::WrongPassword
    );
    let key = kms.vault.unlock(&anna(), &locked, b"password").unwrap();

    // And a token of it is opened once for each time it is fetched.
    let place = Context::new("unlock-token").bytes("anna");
    kms.vault.prepare(&mut kms.rng, &place, false).unwrap();
    let (token, id) = kms.vault.token(&mut kms.rng, &place, &key, 9).unwrap();
    for _ in 0..2 {
        assert_eq!(
            kms.vault.open_token(&place, &token).unwrap_err(),
            VaultError::Cold
        );
        kms.vault.fetch(&place, &token).unwrap();
        let opened = kms.vault.open_token(&place, &token).unwrap();
        assert_eq!((opened.id, opened.expires_at), (id, 9));
    }
    assert!(
        wrapped_key_info(&token)
            .unwrap()
            .service
            .unwrap()
            .2
            .is_empty()
    );
}

#[test]
fn keys_move_to_a_service_and_back_with_their_ids() {
    let mut kms = served("kms", None);
    let (wrapped, locked) = (kms.create(), kms.lock());
    kms.vault = kms.vault.with_cipher(Cipher::ChaCha20Poly1305);
    let (wrapped_chacha, locked_chacha) = (kms.create(), kms.lock());
    let mut local = served("local", None);
    for (blob, cipher) in [
        (&wrapped, Cipher::Aes256Gcm),
        (&locked, Cipher::Aes256Gcm),
        (&wrapped_chacha, Cipher::ChaCha20Poly1305),
        (&locked_chacha, Cipher::ChaCha20Poly1305),
    ] {
        assert_eq!(
            local
                .vault
                .rewrap(&mut local.rng, &anna(), blob)
                .unwrap_err(),
            VaultError::Cold
        );
        local.vault.fetch(&anna(), blob).unwrap();
        let rewrapped = local.vault.rewrap(&mut local.rng, &anna(), blob);
        let rewrapped = rewrapped.unwrap().unwrap();
        assert_eq!(wrapped_by(&rewrapped).unwrap().as_str(), "local");
        assert_eq!(is_locked(&rewrapped), is_locked(blob));

        // It has opened, and a key has to be made.
        assert_eq!(
            kms.vault
                .rewrap(&mut kms.rng, &anna(), &rewrapped)
                .unwrap_err(),
            VaultError::Unmade
        );
        kms.vault.prepare(&mut kms.rng, &anna(), false).unwrap();
        let back = kms.vault.rewrap(&mut kms.rng, &anna(), &rewrapped);
        let back = back.unwrap().unwrap();
        assert_eq!(wrapped_by(&back).unwrap().as_str(), "kms");
        let infos = [blob, &rewrapped, &back].map(|blob| wrapped_key_info(blob).unwrap());
        for info in &infos {
            assert_eq!(info.data_key_id, infos[0].data_key_id);
            assert_eq!(info.cipher, cipher);
        }
        kms.vault.fetch(&anna(), &back).unwrap();
        assert_eq!(kms.vault.rewrap(&mut kms.rng, &anna(), &back), Ok(None));
    }
}

#[test]
fn a_local_key_stands_in_only_where_it_is_named_and_allowed() {
    let mut without = served("kms", None);
    without.service.away.store(true, Ordering::Relaxed);
    assert_eq!(
        without.vault.prepare(&mut without.rng, &anna(), true),
        Err(VaultError::Unavailable)
    );

    let mut with = served("kms", Some("local"));
    with.service.away.store(true, Ordering::Relaxed);
    assert_eq!(
        with.vault.prepare(&mut with.rng, &anna(), false),
        Err(VaultError::Unavailable)
    );
    assert_eq!(with.vault.prepare(&mut with.rng, &anna(), true), Ok(false));
    let wrapped = with.vault.create_data_key(&mut with.rng, &anna()).unwrap();
    assert_eq!(wrapped_by(&wrapped).unwrap().as_str(), "local");
    assert!(with.vault.open_data_key(&anna(), &wrapped).is_ok());
}

#[test]
fn open_keys_are_bounded_in_number_and_in_time() {
    let mut kms = served("kms", None);
    kms.vault = kms.vault.with_cache(CacheLimits {
        keys: 3,
        lifetime: Duration::from_secs(60),
    });
    for _ in 0..5 {
        kms.create();
    }
    assert_eq!(kms.vault.open_data_keys(), 3);

    kms.vault = kms.vault.with_cache(CacheLimits {
        keys: 3,
        lifetime: Duration::ZERO,
    });
    kms.vault.prepare(&mut kms.rng, &anna(), false).unwrap();
    assert_eq!(
        kms.vault
            .create_data_key(&mut kms.rng, &anna())
            .unwrap_err(),
        VaultError::Unmade
    );
}

#[test]
fn nothing_that_is_damaged_opens_whatever_the_service_answers() {
    let mut kms = served("kms", None);
    let (wrapped, locked) = (kms.create(), kms.lock());
    for round in 0..20_000_u32 {
        let blob = if round % 2 == 0 { &wrapped } else { &locked };
        let mut damaged = blob.clone();
        let mut at = || usize::try_from(kms.rng.next_u32()).unwrap_or_default() % blob.len();
        match round % 5 {
            0 => damaged.truncate(at()),
            1 => {
                let (from, to) = (at(), at());
                damaged.swap(from, to);
            }
            changes => {
                for _ in 0..changes {
                    let place = at();
                    damaged[place] ^= 1 << (place % 8);
                }
            }
        }
        if damaged == *blob {
            continue;
        }
        kms.vault.forget();
        assert!(kms.vault.fetch(&anna(), &damaged).is_err(), "{damaged:?}");
        assert!(kms.vault.open_data_key(&anna(), &damaged).is_err());
    }
}
