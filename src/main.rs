//! The program `pii-vault`: everything is in the library, see `src/cli/`.

/// Freed memory is wiped: whatever held a value or a key (a message, a buffer of the network, a string of a library)
/// leaves nothing behind.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> std::process::ExitCode {
    pii_vault::cli::main()
}
