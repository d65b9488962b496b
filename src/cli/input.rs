//! What comes from standard input and the terminal: values, keys, confirmations. Values never come from arguments,
//! because every process on the machine can read those.

use crate::cli::error::CliError;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use zeroize::Zeroizing;

/// Most bytes of a document on standard input: what one request may have.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// One line of standard input without its end. At a terminal it is asked for and not shown.
pub fn line(what: &str) -> Result<Zeroizing<String>, CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let text = rpassword::prompt_password(format!("{what}: ")).map_err(CliError::io("terminal"))?;
        return Ok(Zeroizing::new(text));
    }
    let mut text = Zeroizing::new(String::new());
    let read = stdin.lock().take(MAX_INPUT).read_line(&mut text).map_err(CliError::io("standard input"))?;
    if read == 0 {
        return Err(CliError::Usage(format!("standard input ended before the line with {what}")));
    }
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    Ok(text)
}

/// Everything on standard input, at most 4 MiB.
pub fn whole(what: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = writeln!(io::stderr(), "{what} on standard input, end with Ctrl-D:");
    }
    let mut bytes = Zeroizing::new(Vec::new());
    stdin.lock().take(MAX_INPUT + 1).read_to_end(&mut bytes).map_err(CliError::io("standard input"))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(CliError::Usage(format!("{what}: more than 4 MiB")));
    }
    Ok(bytes)
}

/// The lines of standard input that are not empty, with their numbers, each at most 4 MiB long.
pub fn lines() -> impl Iterator<Item = Result<(usize, Zeroizing<String>), CliError>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut text = Zeroizing::new(String::new());
            match io::stdin().lock().take(MAX_INPUT + 1).read_line(&mut text) {
                Ok(0) => return None,
                Ok(n) if n as u64 > MAX_INPUT => {
                    return Some(Err(CliError::Usage(format!("line {number} is longer than 4 MiB"))));
                }
                Ok(_) if text.trim().is_empty() => {}
                Ok(_) => {
                    let end = text.trim_end_matches(['\r', '\n']).len();
                    text.truncate(end);
                    return Some(Ok((number, text)));
                }
                Err(e) => return Some(Err(CliError::io("standard input")(e))),
            }
        }
    })
}

/// Asks before something that cannot be taken back. Without a terminal nobody can answer, so `--yes` is needed.
pub fn confirm(yes: bool, what: &str) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    let answer = ask(&format!("{what}. Go on? [y/N] "))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(CliError::NotConfirmed) }
}

/// Asks for a name to be typed once more.
pub fn confirm_name(given: Option<&str>, name: &str, what: &str) -> Result<(), CliError> {
    let typed = match given {
        Some(given) => given.to_string(),
        None => ask(&format!("{what}. Type {name} to go on: "))?,
    };
    if typed.trim() == name { Ok(()) } else { Err(CliError::NotConfirmed) }
}

fn ask(question: &str) -> Result<String, CliError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return Err(CliError::Usage("this cannot be taken back and nobody is there to ask: say --yes".into()));
    }
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(CliError::io("terminal"))?;
    Ok(answer)
}
