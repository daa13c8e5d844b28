//! The one table of the control API: what is served, by which method and path, who may ask, and what goes each way.
//! Requests are matched by it, and the book's page about the API is written from it.

use http::Method;

pub use super::access::Access;

/// A route as the documentation tells of it.
#[derive(Debug)]
pub struct RouteDoc {
    pub route: Route,
    pub method: Method,
    /// `{…}` as its last segment stands for one that the caller chooses.
    pub path: &'static str,
    pub access: Access,
    /// The request's body or query in words, empty where there is none.
    pub request: &'static str,
    /// The answer's body in words.
    pub answer: &'static str,
    pub about: &'static str,
}

macro_rules! routes {
    ($($route:ident: $method:ident $path:literal, $access:ident, $request:literal => $answer:literal, $about:literal;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Route {
            $(#[doc = $about] $route,)+
        }

        static TABLE: &[RouteDoc] = &[$(RouteDoc {
            route: Route::$route,
            method: Method::$method,
            path: $path,
            access: Access::$access,
            request: $request,
            answer: $answer,
            about: $about,
        },)+];
    };
}

routes! {
    Status: GET "/v1/status", Look,
        "" => "`Status`: forwarder, bundle, hooks, guarantees, drops, audit log, who does not trust the CA, alarms",
        "How the daemon is, and what holds on this host.";
    Audit: GET "/v1/audit", Look,
        "query: the filters of `agentguard audit`, and `follow=true`" => "records, one JSON object a line; with the header `agentguard-cut: true` where older ones match, too",
        "The newest audit records that match, 100,000 and 64 MiB at most, oldest first; with `follow=true` also those to come.";
    Authority: GET "/v1/ca", Trust,
        "" => "`Info`: the certificate as PEM, its digest and its validity",
        "The certificate of this host's CA.";
    Run: POST "/v1/run", Run,
        "`Run`: `agent`, `pid` of a waiting child, `task`" => "`Enrolment`: what the child needs before its first instruction",
        "Makes a child of the caller's a process of an agent's.";
    Tasks: GET "/v1/tasks", Task,
        "" => "list of `TaskLine`",
        "The open tasks: all for viewers, for others those of agents that they may start.";
    StartTask: POST "/v1/tasks", Task,
        "`TaskStart`: `agent`, `intent`, `allow`, `scope`, `for_s`" => "`TaskLine`",
        "Opens a task for an agent.";
    EndTask: POST "/v1/tasks/end", Task,
        "`TaskEnd`: `id`" => "`TaskLine`",
        "Ends a task.";
    Agents: GET "/v1/agents", Look,
        "" => "list of `AgentLine`",
        "Every agent that is known, with its state and what it uses.";
    Suspend: POST "/v1/agents/suspend", Register,
        "`Change`: `agents` or `owner`, `reason`" => "`ChangeAnswer`: the agents' states, and what was cut",
        "Stops agents, or all of an owner's, until they are activated.";
    Activate: POST "/v1/agents/activate", Register,
        "`Change`: `agents` or `owner`, `reason`" => "`ChangeAnswer`",
        "Lets suspended agents, or an owner's, go on.";
    Retire: POST "/v1/agents/retire", Register,
        "`Change`: `agents`, `reason`" => "`ChangeAnswer`",
        "Stops agents for good.";
    Reassign: POST "/v1/agents/reassign", Register,
        "`Change`: `agents`, `owner`, `reason`" => "`ChangeAnswer`",
        "Gives agents another owner.";
    Kill: POST "/v1/kill", Kill,
        "`Target`: `agents` or `all`, `reason`" => "`killed`: list of `Cut`",
        "Kills agents: they do nothing any more, and their connections are cut.";
    Revive: POST "/v1/revive", Kill,
        "`Target`: `agents` or `all`, `reason`" => "`revived`: list of `NamedAgent`",
        "Takes a kill back.";
    Policy: GET "/v1/policy", Look,
        "" => "`InForce`, with the bundle's files",
        "The bundle in force.";
    Apply: POST "/v1/policy", Apply,
        "`Bundle`: `files` or `packed`" => "`InForce`, with warnings",
        "Puts a bundle in force.";
    Rollback: POST "/v1/policy/rollback", Apply,
        "`Rollback`: `serial`" => "`InForce`, with warnings",
        "Puts an earlier bundle in force again; without a serial the one before.";
    Explain: POST "/v1/policy/explain", Look,
        "`Question`: an agent, and an act as a person writes it" => "`Explanation`",
        "What the policy in force says of an act, and why.";
    History: GET "/v1/policy/history", Look,
        "" => "list of `Past`, newest first",
        "The bundles that have been in force.";
    Past: GET "/v1/policy/history/{bundle}", Look,
        "" => "`Past`, with the bundle's files",
        "The newest of them with that serial, or whose digest begins so (8 digits at least).";
    Unload: POST "/v1/unload", Unload,
        "" => "`unloading`: true",
        "Ends the daemon and takes its programs out of the kernel: no agent is held any more.";
}

/// Every route, in the order in which they are told.
pub fn table() -> &'static [RouteDoc] {
    TABLE
}

/// A request's route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMatch<'p> {
    pub route: Route,
    pub access: Access,
    /// What stands for the path's `{…}`; empty for a path without.
    pub parameter: &'p str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    UnknownPath,
    /// The path is served, by these methods.
    OtherMethod(Vec<Method>),
}

impl Route {
    /// The route of a request's method and path, and who may ask for it.
    pub fn parse<'p>(method: &Method, path: &'p str) -> Result<RouteMatch<'p>, RouteError> {
        let mut others = Vec::new();
        for row in TABLE {
            let Some(parameter) = row.parameter(path) else {
                continue;
            };
            if row.method == *method {
                return Ok(RouteMatch {
                    route: row.route,
                    access: row.access,
                    parameter,
                });
            }
            others.push(row.method.clone());
        }
        Err(match others.is_empty() {
            true => RouteError::UnknownPath,
            false => RouteError::OtherMethod(others),
        })
    }
}

impl RouteDoc {
    /// What stands in `path` for this route's `{…}`, if the path is this route's.
    fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.split_once('{') {
            None => (path == self.path).then_some(""),
            Some((before, _)) => path
                .strip_prefix(before)
                .filter(|rest| !rest.is_empty() && !rest.contains('/')),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const METHODS: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];

    fn route(method: &Method, path: &str) -> Option<Route> {
        Route::parse(method, path).ok().map(|found| found.route)
    }

    #[test]
    fn every_route_parses_to_itself_with_its_one_verb() {
        let mut seen = HashSet::new();
        for row in table() {
            let found = Route::parse(&row.method, row.path).unwrap();
            assert_eq!((found.route, found.access), (row.route, row.access));
            assert!(seen.insert(row.route), "{:?} is there twice", row.route);
            assert!(
                !row.answer.is_empty() && row.about.ends_with('.'),
                "{row:?}"
            );
        }
    }

    #[test]
    fn only_looking_is_a_viewers() {
        let looks = |row: &&RouteDoc| row.access == Access::Look;
        let looking: Vec<Route> = table().iter().filter(looks).map(|row| row.route).collect();
        assert_eq!(
            looking,
            [
                Route::Status,
                Route::Audit,
                Route::Agents,
                Route::Policy,
                Route::Explain,
                Route::History,
                Route::Past,
            ]
        );
    }

    #[test]
    fn a_path_that_is_not_in_the_table_is_unknown() {
        for path in [
            "/v1/metrics",
            "/v1/agents/promote",
            "/v1/agents/suspend/all",
            "/v1/policy/history/",
            "/v1/policy/history/1/2",
            "/v1/policy/historyless",
            "/v1/status/",
            "/V1/status",
            "/",
            "",
        ] {
            for method in METHODS {
                let error = Route::parse(&method, path).unwrap_err();
                assert_eq!(error, RouteError::UnknownPath, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_served_path_names_its_methods() {
        for (method, path, allowed) in [
            (Method::POST, "/v1/status", &[Method::GET][..]),
            (Method::GET, "/v1/unload", &[Method::POST]),
            (Method::GET, "/v1/agents/suspend", &[Method::POST]),
            (Method::POST, "/v1/policy/history/7", &[Method::GET]),
            (Method::DELETE, "/v1/tasks", &[Method::GET, Method::POST]),
        ] {
            let error = Route::parse(&method, path).unwrap_err();
            assert_eq!(error, RouteError::OtherMethod(allowed.to_vec()), "{path}");
        }
    }

    #[test]
    fn one_request_alone_unloads() {
        let unloads = |row: &RouteDoc| row.route == Route::Unload || row.access == Access::Unload;
        assert_eq!(table().iter().filter(|row| unloads(row)).count(), 1);
        for row in table() {
            for method in METHODS {
                for path in [row.path.to_owned(), format!("{}/unload", row.path)] {
                    let is_unload = method == Method::POST && path == "/v1/unload";
                    let found = route(&method, &path);
                    assert_eq!(found == Some(Route::Unload), is_unload, "{method} {path}");
                }
            }
        }
    }

    #[test]
    fn a_bundle_of_the_history_is_named_by_the_last_segment() {
        let found = Route::parse(&Method::GET, "/v1/policy/history/0197f6a0").unwrap();
        assert_eq!((found.route, found.parameter), (Route::Past, "0197f6a0"));
        let all = Route::parse(&Method::GET, "/v1/policy/history").unwrap();
        assert_eq!((all.route, all.parameter), (Route::History, ""));
    }
}
