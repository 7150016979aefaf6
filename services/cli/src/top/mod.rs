//! `shipote top`: what workspaces, flows and machines use, and who goes out, live, in the terminal.
//!
//! `model` is what is known of workspaces and flows, `beside` what other services tell, `view` draws both; this file asks
//! and reads the keys.

mod beside;
mod model;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::json;
use shipote_bus::workspaces::{FiguresProxy, ManagerProxy};
use tokio::sync::mpsc;

use self::beside::Others;
use self::model::{Model, Order};
use crate::{figures, output};

/// Arguments of `shipote top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: q quits, m sorts by memory, c by processor time, n by name.\n\n\
    Examples:\n  shipote top\n  shipote top --once\n  shipote top --json | jq '.workspaces[].memory_bytes'")]
pub(crate) struct TopArgs {
    /// Time between two looks, 100ms to 1h: 5s, or seconds
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = crate::units::seconds)]
    interval: Duration,
    /// Print the view once, as text, and leave
    #[arg(long)]
    once: bool,
    /// Print the figures once, as one JSON object, and leave
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&args.interval) {
        bail!("top: --interval {:?} is too short or too long; give 100ms to 1h", args.interval);
    }
    let manager = output::workspaces().await?;
    let others = Others::new(manager.inner().connection()).await?;
    let mut source = Source { figures: figures::client().await?, manager, others };
    let mut model = Model::default();
    source.look(&mut model).await?;
    if args.json {
        let machines: Vec<_> = model.beside.machines.iter().map(|machine| &machine.info).collect();
        output::json(&json!({
            "workspaces": model.stats(),
            "flows": model.flow_infos(),
            "machines": machines,
            "egress": model.beside.ways,
            "notes": model.beside.notes,
        }))?;
    } else if args.once {
        print!("{}", view::text(&model, WIDTH)?);
    } else if std::io::stdout().is_terminal() {
        live(&mut source, model, args.interval).await?;
    } else {
        bail!("top: standard output is no terminal; --once prints the view, --json the figures");
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns of the view where there is no terminal.
const WIDTH: u16 = 110;

/// Whom to ask.
struct Source {
    figures: FiguresProxy<'static>,
    manager: ManagerProxy<'static>,
    others: Others,
}

impl Source {
    /// Asks for everything once.
    async fn look(&mut self, model: &mut Model) -> anyhow::Result<()> {
        let stats = self.figures.stats("", BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
        for id in stats.iter().map(|s| s.id.clone()).filter(|id| !model.knows(id)).collect::<Vec<_>>() {
            // it may have ended meanwhile
            if let Ok(samples) = self.figures.history(&id, 0, BTreeMap::new()).await {
                model.begin(&id, &samples);
            }
        }
        let flows = self.manager.list_flows(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
        model.take(stats, flows);
        model.beside = self.others.look().await;
        let all = self.manager.list_workspaces(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
        model.beside.mark_all(&all);
        Ok(())
    }
}

/// Draws until a key says that it is enough.
async fn live(source: &mut Source, mut model: Model, every: Duration) -> anyhow::Result<()> {
    let mut keys = keys();
    let mut terminal = ratatui::try_init().context("top: prepare the terminal")?;
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let outcome = loop {
        if let Err(error) = terminal.draw(|frame| view::draw(frame, &model)) {
            break Err(anyhow::Error::from(error).context("top: draw"));
        }
        tokio::select! {
            _ = ticks.tick() => if let Err(error) = source.look(&mut model).await {
                break Err(error);
            },
            key = keys.recv() => match key {
                Some(Key::Order(order)) => model.order = order,
                Some(Key::Redraw) => {}
                Some(Key::Quit) | None => break Ok(()),
            },
        }
    };
    ratatui::restore();
    outcome
}

/// What a key means.
enum Key {
    Quit,
    Order(Order),
    Redraw,
}

/// Reads the terminal on a thread of its own, which ends with the process.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if let Some(key) = meaning(&event)
                && sender.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn meaning(event: &Event) -> Option<Key> {
    match event {
        Event::Resize(..) => Some(Key::Redraw),
        Event::Key(key) if key.kind == KeyEventKind::Release => None,
        Event::Key(key) => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
            KeyCode::Char('m') => Some(Key::Order(Order::Memory)),
            KeyCode::Char('c') => Some(Key::Order(Order::Cpu)),
            KeyCode::Char('n') => Some(Key::Order(Order::Name)),
            _ => None,
        },
        _ => None,
    }
}
