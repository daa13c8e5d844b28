//! AgentGuard as an operator has it: who is an agent, starting, stopping and killing, the command line, the log, alarms.

mod agents;
mod attribution;
mod audit;
mod canary;
mod cli;
mod control;
mod doctor;
mod forced_reads;
mod kill;
mod non_agent;
mod own_tasks;
mod records;
mod restart;
mod run;
mod search;
mod storm;
mod tasks;
