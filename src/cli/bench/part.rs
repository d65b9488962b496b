//! Processes of a run. Each part (vault, echo, raw SQLite) is a child of the measuring process, told what to do by a JSON
//! object a line on its standard input, and answering the same way; it ends when its input does, so none is left behind.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::BenchError;
use super::os;

/// A running part.
pub struct Part {
    role: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    answers: UnboundedReceiver<Json>,
    /// What it said when it was ready.
    pub ready: Json,
}

impl Part {
    /// Starts `pii-vault bench part ROLE --dir DIR` and waits until it is ready. `core`: stays there; otherwise it may use
    /// every core.
    pub async fn start(role: &'static str, dir: &Path, core: Option<usize>) -> Result<Part, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::io("this program"))?;
        let mut command = Command::new(program);
        command.args(["bench", "part", role, "--dir"]).arg(dir);
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Not on the client's core, unless it is told to.
        let mut child = os::unpinned(|| command.spawn()).map_err(BenchError::io("a part"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (send, answers) = unbounded_channel();
        if let Some(output) = output {
            std::thread::spawn(move || forward(output, &send));
        }
        let mut part = Part { role, child, input, answers, ready: Json::Null };
        part.ready = part.answer().await?;
        Ok(part)
    }

    async fn answer(&mut self) -> Result<Json, BenchError> {
        let role = self.role;
        let answer = self.answers.recv().await.ok_or(BenchError::Part { role, why: "it ended".into() })?;
        match answer.get("error").and_then(Json::as_str) {
            Some(why) => Err(BenchError::Part { role, why: why.to_owned() }),
            None => Ok(answer),
        }
    }

    /// Tells it what to do and waits for the answer.
    pub async fn ask(&mut self, request: Json) -> Result<Json, BenchError> {
        let input = self.input.as_mut().ok_or(BenchError::Part { role: self.role, why: "it was ended".into() })?;
        writeln!(input, "{request}").and_then(|()| input.flush()).map_err(BenchError::io("a part's input"))?;
        self.answer().await
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Result<Duration, BenchError> {
        os::cpu(self.child.id()).map_err(BenchError::io("/proc"))
    }

    /// Bytes in RAM.
    pub fn resident(&self) -> Result<u64, BenchError> {
        os::resident(self.child.id()).map_err(BenchError::io("/proc"))
    }

    /// The most bytes in RAM that it ever had.
    pub fn peak(&self) -> Result<u64, BenchError> {
        os::peak(self.child.id()).map_err(BenchError::io("/proc"))
    }

    /// Its port.
    pub fn port(&self) -> Result<u16, BenchError> {
        let port = self.ready["port"].as_u64().and_then(|p| u16::try_from(p).ok());
        port.ok_or(BenchError::Part { role: self.role, why: "it has no port".into() })
    }

    /// Lets it close its files and waits for its end.
    pub async fn end(mut self) -> Result<(), BenchError> {
        self.input.take();
        while self.answers.recv().await.is_some() {}
        let status = self.child.wait().map_err(BenchError::io("a part's end"))?;
        match status.success() {
            true => Ok(()),
            false => Err(BenchError::Part { role: self.role, why: format!("it ended with {status}") }),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After an error only: nothing of a run is kept.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn forward(output: impl std::io::Read, send: &UnboundedSender<Json>) {
    for line in BufReader::new(output).lines() {
        let Ok(line) = line else { return };
        let answer =
            serde_json::from_str(&line).unwrap_or_else(|_| serde_json::json!({ "error": "it spoke nonsense" }));
        if send.send(answer).is_err() {
            return;
        }
    }
}

/// The other side: requests as they come on standard input, from a thread of its own.
pub fn requests() -> UnboundedReceiver<Json> {
    let (send, receive) = unbounded_channel();
    std::thread::spawn(move || forward(std::io::stdin(), &send));
    receive
}

/// Answers on standard output.
pub fn say(answer: &Json) {
    let mut out = std::io::stdout().lock();
    // The measuring process went away: our input ends too.
    let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
}
