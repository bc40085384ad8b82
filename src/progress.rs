//! A sign of life during long work, on standard error: a live line on a terminal, else a line a second, and
//! nothing at all when a script reads the result as JSON and nobody watches.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The sign of life. Time is passed in, so that what is shown is what is measured.
pub struct Progress(Shape);

enum Shape {
    Bar(ProgressBar),
    Lines { label: String, total: Duration, out: Box<dyn Write + Send>, next: Duration },
    Silent,
}

impl Progress {
    /// Begins work called `label` that will take `total`. With `json`, only a terminal is shown anything.
    pub fn start(label: &str, total: Duration, json: bool) -> Progress {
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
            // The template is a constant; were it wrong, indicatif's own style would do.
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            Progress(Shape::Bar(bar))
        } else if json {
            Progress::silent()
        } else {
            Progress::lines(label, total, Box::new(std::io::stderr()))
        }
    }

    /// Shows nothing: of work that is a part of other work, which shows itself.
    pub fn silent() -> Progress {
        Progress(Shape::Silent)
    }

    fn lines(label: &str, total: Duration, out: Box<dyn Write + Send>) -> Progress {
        Progress(Shape::Lines { label: label.to_owned(), total, out, next: LINE_EVERY })
    }

    /// Shows that `elapsed` of the time has passed, and a few words about how it goes. May be called as
    /// often as wanted.
    pub fn update(&mut self, elapsed: Duration, words: &str) {
        match &mut self.0 {
            Shape::Bar(bar) => {
                bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                bar.set_message(words.to_owned());
            }
            Shape::Lines { label, total, out, next } if elapsed >= *next => {
                // Whole seconds, so that a late call does not shift all later lines.
                *next = Duration::from_secs(elapsed.as_secs()) + LINE_EVERY;
                let (elapsed, total) = (elapsed.as_secs(), total.as_secs_f64());
                // Where standard error is closed, nobody watches.
                let _ = writeln!(out, "{label}: {elapsed} of {total} s, {words}");
            }
            Shape::Lines { .. } | Shape::Silent => {}
        }
    }
}

impl Drop for Progress {
    /// The live line makes room for the result.
    fn drop(&mut self) {
        if let Shape::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// How long the rest of some work takes. `elapsed` was spent on what was planned to take `done`; all of it was
/// planned to take `planned`. What is left is taken to exceed its plan as what is done did.
pub fn time_left(elapsed: Duration, done: Duration, planned: Duration) -> Duration {
    let left = planned.saturating_sub(done);
    if done.is_zero() { left } else { left.mul_f64(elapsed.as_secs_f64() / done.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// However often it is told, and also after a gap, there is at most one line for each second.
    #[test]
    fn a_line_a_second() {
        let page = Page::default();
        let mut progress = Progress::lines("stream", Duration::from_secs(5), Box::new(page.clone()));
        for ms in [0, 400, 999, 1_000, 1_400, 3_900, 3_950, 4_000] {
            progress.update(Duration::from_millis(ms), &format!("at {ms}"));
        }
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "stream: 1 of 5 s, at 1000\nstream: 3 of 5 s, at 3900\nstream: 4 of 5 s, at 4000\n");
    }

    /// What is left is as slow as what is done was; before that, as planned.
    #[test]
    fn time_left_follows_the_pace() {
        let left = |elapsed, done, planned| {
            time_left(Duration::from_secs(elapsed), Duration::from_secs(done), Duration::from_secs(planned))
                .as_secs()
        };
        assert_eq!(left(1, 0, 60), 60);
        assert_eq!(left(30, 20, 60), 60);
        assert_eq!(left(90, 60, 60), 0);
    }
}
