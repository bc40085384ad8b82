//! The fuzz targets without a fuzzer: each over its committed corpus, and over mutations of it that are the same in every run.

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Mutations of each input.
const MUTATIONS: usize = 25;

#[test]
fn every_target_holds_on_its_corpus_and_near_it() {
    for (name, run) in targets::TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "fuzz/corpus/{name} has inputs");
        let mut mutator = Mutator(0x9e37_79b9_7f4a_7c15);
        for (file, input) in &inputs {
            let hold = |what: &str, input: &[u8]| {
                let held = std::panic::catch_unwind(|| run(input));
                assert!(held.is_ok(), "target {name}, {what} of {file}: {}", input.escape_ascii());
            };
            hold("all", input);
            for number in 0..MUTATIONS {
                let other = &inputs[mutator.below(inputs.len())].1;
                hold(&format!("mutation {number}"), &mutator.mutate(input, other));
            }
        }
    }
}

/// The inputs of a target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// A source of mutations. Its number is never 0.
struct Mutator(u64);

impl Mutator {
    /// Xorshift (Marsaglia 2003): any sequence will do.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// `input` with one to four changes, some by what `other` has.
    fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + 1 + self.below(8)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let from = self.below(other.len() + 1);
                    let run = &other[from..(from + end - at).min(other.len())];
                    bytes[at..at + run.len()].copy_from_slice(run);
                }
                4 => bytes[at..end].fill([0, 1, 0x7f, 0x80, 0xff][self.below(5)]),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        bytes
    }
}
