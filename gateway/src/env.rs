//! Clock and randomness, handed in so that tests can replace them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall clock and randomness.
pub trait Env: Send + Sync + 'static {
    /// ms since 1970.
    fn now_ms(&self) -> u64;
    /// 64 random bits.
    fn random(&self) -> u64;
}

/// The machine's clock and the operating system's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u64 {
        // Without randomness nothing here is safe: epochs would collide and hide a loss.
        getrandom::u64().expect("the operating system gives random bytes")
    }
}
