//! What a row costs under the two ciphers of data keys, in turns, medians in microseconds.
//!
//!     cargo run --release -p kith_vault --example ciphers
//!
//! As on a processor without instructions for any of them, with portable code alone:
//!
//!     RUSTFLAGS='--cfg aes_backend="soft" --cfg polyval_backend="soft" --cfg chacha20_backend="soft" --cfg poly1305_backend="soft"' \
//!       cargo run --release -p kith_vault --example ciphers --target-dir target/portable

use std::{error::Error, hint::black_box, time::Instant};

use kith_vault::{Cipher, Context, DataKey, KeyId, Source, Vault};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use zeroize::Zeroizing;

const ROUNDS: usize = 200;
const CALLS: u32 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let place = Context::new("row");
    let keys = [
        data_key(Cipher::Aes256Gcm, &mut rng)?,
        data_key(Cipher::ChaCha20Poly1305, &mut rng)?,
    ];

    println!("| bytes | AES seal | AES open | ChaCha seal | ChaCha open |");
    println!("| --- | --- | --- | --- | --- |");
    for bytes in [64, 600, 2_000, 8_000, 65_536] {
        let text = vec![7; bytes];
        let mut times = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            for (key, times) in keys.iter().zip(times.chunks_mut(2)) {
                let row = key.seal(&mut rng, &place, &text)?;
                let sealing = Instant::now();
                for _ in 0..CALLS {
                    black_box(key.seal(&mut rng, &place, &text)?);
                }
                let opening = Instant::now();
                for _ in 0..CALLS {
                    black_box(key.open(&place, &row)?);
                }
                let done = Instant::now();
                for (times, time) in times.iter_mut().zip([opening - sealing, done - opening]) {
                    times.push(time / CALLS);
                }
            }
        }
        let medians = times.map(|mut times| {
            times.sort();
            let median = times.get(ROUNDS / 2).map_or(0.0, |time| time.as_secs_f64());
            format!("{:.2}", median * 1e6)
        });
        println!("| {bytes} | {} |", medians.join(" | "));
    }
    Ok(())
}

fn data_key(cipher: Cipher, rng: &mut ChaCha20Rng) -> Result<DataKey, Box<dyn Error>> {
    let (id, account) = (KeyId::new("bench")?, Context::new("data-key"));
    let key = Source::Key(Zeroizing::new(vec![1; 32]));
    let vault = Vault::new(id.clone(), vec![(id, key)])?.with_cipher(cipher);
    let wrapped = vault.create_data_key(rng, &account)?;
    Ok(vault.open_data_key(&account, &wrapped)?)
}
