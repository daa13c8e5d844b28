//! What being there costs: `connect(2)` and plain traffic of a process that is not an agent, with AgentGuard loaded and
//! not loaded in turn; `connect(2)` of an agent.

use std::net::SocketAddr;

use agentguard_tests::Guard;

use crate::load::Command;
use crate::place::Place;
use crate::programs::{self, Cost};
use crate::report::{Mode, Report, Row};
use crate::subject::Subject;

use super::{Plan, group};

pub(super) const NAME: &str = "connect";

pub(super) fn measure(place: &Place, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let authority = place.authority();
    let site = place.site();
    let mut plain = Subject::plain("plain", site, place.origin(), &authority, None)?;
    for round in 0..plan.rounds {
        let connects = |subject: &mut Subject, to: SocketAddr| {
            let count = plan.connects;
            subject.ask(&Command::Connect { to, count })
        };
        let alone = connects(&mut plain, place.acceptor())?;
        report.add(Row::Connect, Mode::Unloaded.name(), alone.p50_us);
        group::bystander(&mut plain, plan, report, Mode::Unloaded)?;

        let others = programs::loaded();
        let guard = Guard::start(site, &place.bundle());
        let ours = &programs::loaded() - &others;
        let mut agent = Subject::guarded("agent", &guard, place.origin(), &authority)?;
        let near = connects(&mut plain, place.acceptor())?;
        report.add(Row::Connect, Mode::Bystander.name(), near.p50_us);
        group::bystander(&mut plain, plan, report, Mode::Bystander)?;
        for (mode, to) in agents(place) {
            let outcome = connects(&mut agent, to)?;
            report.add(Row::Connect, mode.name(), outcome.p50_us);
        }
        if round + 1 < plan.rounds {
            continue;
        }
        let mut counted = |mode: Mode, work: &mut dyn FnMut() -> anyhow::Result<()>| {
            let costs = programs::cost_of(&ours, work)?;
            let all: Cost = costs.values().fold(Cost::default(), |all, cost| Cost {
                runs: plan.connects.into(),
                time: all.time + cost.time,
            });
            report.add_programs(mode, costs, all);
            anyhow::Ok(())
        };
        counted(Mode::Bystander, &mut || {
            connects(&mut plain, place.acceptor()).map(drop)
        })?;
        for (mode, to) in agents(place) {
            counted(mode, &mut || connects(&mut agent, to).map(drop))?;
        }
    }
    Ok(())
}

fn agents(place: &Place) -> [(Mode, SocketAddr); 2] {
    [
        (Mode::Direct, place.acceptor()),
        (Mode::Forward, place.origin()),
    ]
}
