//! Cron schedules: five fields, names, steps, and the usual @shorthands. Pure.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that has no time before the end of this many years more has none at all.
const YEARS_AHEAD: i16 = 5;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Schedule {
    Fields {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        /// Whether both kinds of days restrict; then either of them suffices.
        either_day: bool,
    },
    Every(Duration),
}

/// Bits of one field, and whether it is a star.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let (mut bits, mut star) = (0u64, false);
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u32>().ok().filter(|s| *s > 0);
                (range, step.ok_or(format!("step of {part:?} is not a positive number"))?)
            }
            None => (part, 1),
        };
        let number = |t: &str| -> Result<u32, String> {
            let named = names.iter().position(|n| t.eq_ignore_ascii_case(n));
            match named {
                Some(at) => Ok(at as u32 + low),
                None => t.parse().map_err(|_| format!("{t:?} is not a number")),
            }
        };
        let (first, last) = match range {
            "*" | "?" => {
                star |= step == 1;
                (low, high)
            }
            _ => match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None if part.contains('/') => (number(range)?, high),
                None => (number(range)?, number(range)?),
            },
        };
        if first < low || last > high || first > last {
            return Err(format!("{part:?} is not within {low}-{high}"));
        }
        (first..=last).step_by(step as usize).for_each(|n| bits |= 1 << n);
    }
    Ok((bits, star))
}

impl Schedule {
    pub(super) fn parse(text: &str) -> Result<Schedule, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(period) = text.strip_prefix("@every ") {
            let period = apimachinery::duration::parse(period).filter(|p| p.as_secs() > 0);
            return period.map(Schedule::Every).ok_or(format!("{text:?} has no period"));
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", fields.len()));
        };
        let (days, any_day) = field(days, 1, 31, &[])?;
        // Sunday is 0 and 7.
        let (mut weekdays, any_weekday) = field(weekdays, 0, 7, &DAYS)?;
        if weekdays & (1 << 7) != 0 {
            weekdays |= 1;
        }
        Ok(Schedule::Fields {
            minutes: field(minutes, 0, 59, &[])?.0,
            hours: field(hours, 0, 23, &[])?.0,
            days,
            months: field(months, 1, 12, &MONTHS)?.0,
            weekdays,
            either_day: !any_day && !any_weekday,
        })
    }

    /// The first time after `after`, as a clock in `zone` shows it.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let Schedule::Fields { minutes, hours, days, months, weekdays, either_day } = self else {
            let Schedule::Every(period) = self else { return None };
            return Timestamp::from_second(after.as_second() + period.as_secs() as i64).ok();
        };
        let has = |bits: &u64, n: i8| bits & (1 << n) != 0;
        let start = zone.to_datetime(after);
        let mut date = start.date();
        let (today_is, last_year) = (date, date.year().saturating_add(YEARS_AHEAD));
        while date.year() <= last_year {
            let day = has(days, date.day());
            let weekday = has(weekdays, date.weekday().to_sunday_zero_offset());
            let today = if *either_day { day || weekday } else { day && weekday };
            if today && has(months, date.month()) {
                for hour in (0..24i8).filter(|h| has(hours, *h)) {
                    if date == today_is && hour < start.hour() {
                        continue;
                    }
                    for minute in (0..60i8).filter(|m| has(minutes, *m)) {
                        let at: DateTime = date.at(hour, minute, 0, 0);
                        // Times that a change of the clock leaves out come right after it.
                        let Ok(at) = zone.to_timestamp(at) else { continue };
                        if at > after {
                            return Some(at);
                        }
                    }
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_times() {
        let from: Timestamp = "2026-01-31T23:59:30Z".parse().unwrap();
        for (text, want) in [
            ("* * * * *", "2026-02-01T00:00:00Z"),
            ("*/15 * * * *", "2026-02-01T00:00:00Z"),
            ("5/20 3 * * *", "2026-02-01T03:05:00Z"),
            ("0 12 31 * ?", "2026-03-31T12:00:00Z"),
            ("0 0 29 feb *", "2028-02-29T00:00:00Z"),
            ("0 0 13 * fri", "2026-02-06T00:00:00Z"),
            ("0 0 * * 7", "2026-02-01T00:00:00Z"),
            ("0 9 * * mon-wed", "2026-02-02T09:00:00Z"),
            ("@monthly", "2026-02-01T00:00:00Z"),
            ("@every 90s", "2026-02-01T00:01:00Z"),
        ] {
            let next = Schedule::parse(text).unwrap().next(from, &TimeZone::UTC);
            assert_eq!(next.unwrap().to_string(), want, "{text}");
        }
        // Never, and not within five years.
        for text in ["59 23 31 2 *", "0 0 30 2 *"] {
            assert_eq!(Schedule::parse(text).unwrap().next(from, &TimeZone::UTC), None, "{text}");
        }
        let late: Timestamp = "2096-03-01T00:00:00Z".parse().unwrap();
        assert_eq!(Schedule::parse("0 0 29 2 *").unwrap().next(late, &TimeZone::UTC), None);
        for wrong in ["", "* * * *", "60 * * * *", "* * 0 * *", "a * * * *", "*/0 * * * *", "5-1 * * * *"] {
            assert!(Schedule::parse(wrong).is_err(), "{wrong}");
        }
    }
}
