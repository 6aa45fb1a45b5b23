//! Several processes share the work of one queue. One of them is killed while it holds a task: another one gets that
//! task, marked as redelivered, and every task is done.
//!
//! Needs a running daemon (`ringmain serve`), at the default socket or where `RINGMAIN_SOCKET` says.

use std::collections::BTreeSet;
use std::error::Error;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use ringmain_client::{Client, Kind, QueueSpec};

const WORKERS: u32 = 3;
const TASKS: u32 = 1000;
/// The worker that gets this task never finishes it.
const FATAL_TASK: u32 = 300;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.get(1).map(String::as_str) {
        Some(name) => work(name),
        None => lead(),
    };
    if let Err(error) = result {
        eprintln!("work_queue: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn lead() -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let name = format!("work-queue-{}", std::process::id());
    let spec = QueueSpec { kind: Some(Kind::Mpmc), ..QueueSpec::default() };
    client.create_queue(&format!("{name}.tasks"), spec.clone())?;
    client.create_queue(&format!("{name}.results"), spec)?;
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(Command::new(std::env::current_exe()?).arg(&name).spawn()?);
    }

    let result = distribute(&client, &name, &mut workers);

    client.delete_queue(&format!("{name}.tasks"))?;
    client.delete_queue(&format!("{name}.results"))?;
    for mut worker in workers {
        worker.wait()?;
    }
    result
}

fn distribute(client: &Client, name: &str, workers: &mut [Child]) -> Result<(), Box<dyn Error>> {
    let mut tasks = client.producer(&format!("{name}.tasks"))?;
    let mut results = client.consumer(&format!("{name}.results"))?;
    for task in 0..TASKS {
        tasks.send(&task.to_le_bytes())?;
    }
    let mut done = BTreeSet::new();
    let mut redelivered = 0;
    let mut buffer = Vec::new();
    while done.len() < TASKS as usize {
        results.receive_timeout(&mut buffer, Duration::from_secs(30))?;
        match Answer::read(&buffer)? {
            Answer::Stuck { process } => {
                println!("process {process} holds task {FATAL_TASK} and hangs: killing it");
                let stuck = workers.iter_mut().find(|worker| worker.id() == process);
                stuck.ok_or("an unknown process answered")?.kill()?;
            }
            Answer::Done { task, process, again } => {
                if again {
                    redelivered += 1;
                    println!("process {process} got task {task} again and did it");
                }
                if !done.insert(task) {
                    return Err(format!("task {task} was done twice").into());
                }
            }
        }
    }
    println!("{} tasks done by {WORKERS} processes, {redelivered} redelivered", done.len());
    Ok(())
}

fn work(name: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let mut tasks = client.consumer(&format!("{name}.tasks"))?;
    let mut results = client.producer(&format!("{name}.results"))?;
    let process = std::process::id();
    let mut buffer = Vec::new();
    // The guard keeps the task until its result is sent. Only then is it given back.
    while let Ok(guard) = tasks.take() {
        guard.copy_to(&mut buffer)?;
        let task = u32::from_le_bytes(buffer.as_slice().try_into()?);
        let again = guard.redelivered();
        if task == FATAL_TASK && !again {
            results.send(&Answer::Stuck { process }.bytes())?;
            std::thread::sleep(Duration::from_secs(3600));
        }
        if results.send(&Answer::Done { task, process, again }.bytes()).is_err() {
            break;
        }
    }
    Ok(())
}

enum Answer {
    Done { task: u32, process: u32, again: bool },
    Stuck { process: u32 },
}

impl Answer {
    fn bytes(&self) -> [u8; 9] {
        let (kind, process, task) = match self {
            Self::Done { task, process, again } => (u8::from(*again), *process, *task),
            Self::Stuck { process } => (2, *process, 0),
        };
        let [p0, p1, p2, p3] = process.to_le_bytes();
        let [t0, t1, t2, t3] = task.to_le_bytes();
        [kind, p0, p1, p2, p3, t0, t1, t2, t3]
    }

    fn read(bytes: &[u8]) -> Result<Self, Box<dyn Error>> {
        let [kind, process @ .., _, _, _, _] = bytes else {
            return Err("short answer".into());
        };
        let process = u32::from_le_bytes(process.try_into()?);
        let task = u32::from_le_bytes(bytes[5..].try_into()?);
        match kind {
            0 | 1 => Ok(Self::Done { task, process, again: *kind == 1 }),
            2 => Ok(Self::Stuck { process }),
            kind => Err(format!("unknown answer {kind}").into()),
        }
    }
}
