//! The program `pii-vault`: everything is in the library, see `src/cli/`.

fn main() -> std::process::ExitCode {
    pii_vault::cli::main()
}
