//! Keys from the environment and from files: what is taken, what is refused, and in which words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use kith_vault::{Context, KeyId, Source, Vault, wrapped_by};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use zeroize::Zeroizing;

/// Base64 of the bytes 0 to 31.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn open(source: Source) -> Result<Vault, String> {
    let id = KeyId::new("k1").unwrap();
    Vault::new(id.clone(), vec![(id, source)]).map_err(|error| error.to_string())
}

fn refusal(source: Source) -> String {
    let text = open(source).unwrap_err();
    for part in KEY.as_bytes().windows(8) {
        assert!(
            !text.contains(str::from_utf8(part).unwrap()),
            "part of the key is shown: {text}"
        );
    }
    text
}

/// Whether the vault holds the bytes 0 to 31.
fn assert_holds_the_key(vault: &Vault) {
    let context = Context::new("data-key");
    let wrapped = vault
        .create_data_key(&mut ChaCha20Rng::from_seed([0; 32]), &context)
        .unwrap();
    let known = open(Source::Key(Zeroizing::new((0..32).collect()))).unwrap();
    assert!(known.open_data_key(&context, &wrapped).is_ok());
}

/// A path of its own for each test, with nothing there.
fn path(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    path
}

fn file(name: &str, content: &str, mode: u32) -> PathBuf {
    let path = path(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_strict_file_is_taken() {
    for (name, content, mode) in [
        ("plain", KEY.to_owned(), 0o600),
        ("newline", format!("{KEY}\n"), 0o400),
        (
            "unpadded",
            format!("\n  {}\r\n", KEY.trim_end_matches('=')),
            0o600,
        ),
    ] {
        let path = file(name, &content, mode);
        assert_holds_the_key(&open(Source::File(path.clone())).unwrap());
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_link_is_judged_by_what_it_leads_to() {
    let (strict, open_to_all) = (file("strict", KEY, 0o600), file("open", KEY, 0o644));
    let (good, bad) = (path("good-link"), path("bad-link"));
    symlink(&strict, &good).unwrap();
    symlink(&open_to_all, &bad).unwrap();
    assert_holds_the_key(&open(Source::File(good.clone())).unwrap());
    assert!(refusal(Source::File(bad.clone())).ends_with("got 0644"));
    for path in [strict, open_to_all, good, bad] {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_file_that_others_may_use_is_refused() {
    for mode in [0o644, 0o640, 0o604, 0o620, 0o660, 0o777, 0o601] {
        let path = file(&format!("mode-{mode:o}"), KEY, mode);
        assert_eq!(
            refusal(Source::File(path.clone())),
            format!(
                "key \"k1\" from file {}: expected a file mode that gives group and others nothing, such as 0600, \
                 got {mode:04o}",
                path.display()
            )
        );
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_file_of_another_user_is_refused() {
    let path = file("owner", KEY, 0o600);
    // Only root can give a file away; for others the rule is tested where it is written.
    if chown(&path, Some(54_321), None).is_ok() {
        let text = refusal(Source::File(path.clone()));
        assert!(
            text.contains("expected a file owned by root or by user 0"),
            "{text}"
        );
        assert!(text.ends_with("got one owned by user 54321"), "{text}");
    }
    fs::remove_file(path).unwrap();
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    for path in [env!("CARGO_TARGET_TMPDIR"), "/dev/null"] {
        assert_eq!(
            refusal(Source::File(path.into())),
            format!("key \"k1\" from file {path}: expected a regular file, got something else")
        );
    }
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let path = path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    assert!(
        refusal(Source::File(path.clone()))
            .ends_with("expected a regular file, got something else")
    );
    fs::remove_file(path).unwrap();
}

#[test]
fn a_missing_file_is_refused() {
    let path = path("missing");
    assert_eq!(
        refusal(Source::File(path.clone())),
        format!(
            "key \"k1\" from file {}: expected a readable file, got: No such file or directory (os error 2)",
            path.display()
        )
    );
}

#[test]
fn a_file_with_another_content_is_refused() {
    let cases = [
        ("empty", String::new(), "expected a key of 32 bytes, got 0"),
        (
            "short",
            KEY[..40].to_owned(),
            "expected a key of 32 bytes, got 30",
        ),
        (
            "twice",
            format!("{}{KEY}", &KEY[..40]),
            "expected a key of 32 bytes, got 62",
        ),
        (
            "letter",
            format!("{KEY}x"),
            "expected base64 of 32 bytes, got text that is not base64",
        ),
        (
            "comment",
            format!("# {KEY}"),
            "expected base64 of 32 bytes, got text that is not base64",
        ),
        (
            "long",
            KEY.repeat(30),
            "expected base64 of 32 bytes, got more than 1024 bytes of text",
        ),
    ];
    for (name, content, words) in cases {
        let path = file(name, &content, 0o600);
        assert_eq!(
            refusal(Source::File(path.clone())),
            format!("key \"k1\" from file {}: {words}", path.display())
        );
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_missing_variable_is_refused() {
    for name in ["KITH_VAULT_NO_SUCH_VARIABLE", "", "A=B", "nul\0"] {
        assert_eq!(
            refusal(Source::Env(name.into())),
            format!(
                "key \"k1\" from environment variable {}: expected base64 of 32 bytes, got a variable that is not set",
                name.escape_debug()
            )
        );
    }
}

#[test]
fn a_key_in_place_of_a_name_is_not_shown() {
    let text = "reads as a key and is not shown";
    for key in [KEY.to_owned(), KEY.trim_end_matches('=').to_owned()] {
        assert!(refusal(Source::Env(key.clone())).contains(text));
        assert!(refusal(Source::File(key.clone().into())).contains(text));
        assert!(!format!("{:?}", Source::Env(key.clone())).contains(&KEY[..8]));
        assert!(KeyId::new(key).is_err());
    }
}

/// Setting a variable in a process with threads is unsound, so the test runs itself once more with the variables set.
#[test]
fn a_key_is_taken_from_the_environment() {
    const GOOD: &str = "KITH_VAULT_TEST_KEY";
    const BAD: &str = "KITH_VAULT_TEST_BAD_KEY";

    if env::var_os(GOOD).is_none() {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_key_is_taken_from_the_environment"])
            .env(GOOD, format!("{KEY}\n"))
            .env(BAD, format!("{KEY}{KEY}"))
            .output()
            .unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && report.contains("1 passed"),
            "{report}"
        );
        return;
    }

    let vault = open(Source::Env(GOOD.into())).unwrap();
    assert_holds_the_key(&vault);
    assert_eq!(
        refusal(Source::Env(BAD.into())),
        format!(
            "key \"k1\" from environment variable {BAD}: expected base64 of 32 bytes, got text that is not base64"
        )
    );
}

#[test]
fn a_key_given_directly_is_taken() {
    let vault = open(Source::Key(Zeroizing::new((0..32).collect()))).unwrap();
    assert_holds_the_key(&vault);
    let wrapped = vault.create_data_key(
        &mut ChaCha20Rng::from_seed([0; 32]),
        &Context::new("data-key"),
    );
    assert_eq!(wrapped_by(&wrapped.unwrap()).unwrap().as_str(), "k1");
}
