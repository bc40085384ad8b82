//! What a copy of so many bytes takes, by where they lie.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the bytes of a frame lie, as the core sees it that copies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// This core wrote them last.
    Own,
    /// A core wrote them last that shares a cache with this one.
    Shared,
    /// A core of another cache wrote them last.
    Remote,
}

impl Locality {
    /// All of them, nearest first.
    pub const ALL: [Locality; 3] = [Locality::Own, Locality::Shared, Locality::Remote];
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Locality::Own => "own",
            Locality::Shared => "shared",
            Locality::Remote => "remote",
        })
    }
}

/// A piecewise linear function of the bytes: through all points, and proportional below the first and beyond the last.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    pieces: Vec<Piece>,
}

/// A piece of a curve, from its first byte up to the next piece's.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from_bytes: f64,
    ns: f64,
    ns_per_byte: f64,
}

impl Curve {
    /// The curve through points of bytes and nanoseconds, if there are any, bytes are more than 0 and grow, and
    /// nanoseconds are numbers that do not shrink.
    pub(super) fn through(points: &[(u32, f64)]) -> Option<Curve> {
        let ((first_bytes, first_ns), (last_bytes, last_ns)) = (*points.first()?, *points.last()?);
        let grows = points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        if first_bytes == 0 || first_ns < 0.0 || !grows || points.iter().any(|(_, ns)| !ns.is_finite()) {
            return None;
        }
        let piece = |(from, ns), (to, to_ns): (u32, f64)| Piece {
            from_bytes: f64::from(from),
            ns,
            ns_per_byte: (to_ns - ns) / f64::from(to - from),
        };
        let mut pieces = vec![piece((0, 0.0), (first_bytes, first_ns))];
        pieces.extend(points.windows(2).map(|pair| piece(pair[0], pair[1])));
        pieces.push(Piece {
            from_bytes: f64::from(last_bytes),
            ns: last_ns,
            ns_per_byte: last_ns / f64::from(last_bytes),
        });
        Some(Curve { pieces })
    }

    /// Nanoseconds for so many bytes.
    pub(super) fn at(&self, bytes: u32) -> f64 {
        let bytes = f64::from(bytes);
        let next = self.pieces.partition_point(|piece| piece.from_bytes <= bytes);
        // The first piece begins at 0, so there is one before.
        let piece = self.pieces[next - 1];
        piece.ns + (bytes - piece.from_bytes) * piece.ns_per_byte
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that a curve meets its points, is linear between them, and proportional outside.
    #[test]
    fn a_curve_goes_through_its_points() {
        let curve = Curve::through(&[(64, 32.0), (128, 40.0), (1024, 936.0)]).unwrap();
        for (bytes, ns) in [
            (0, 0.0),
            (16, 8.0),
            (64, 32.0),
            (96, 36.0),
            (128, 40.0),
            (576, 488.0),
            (1024, 936.0),
            (4096, 3744.0),
        ] {
            assert_eq!(curve.at(bytes), ns, "{bytes}");
        }
    }

    /// Holds that one point is a curve, and that what is no function of the bytes, or shrinks, is refused.
    #[test]
    fn curves_grow() {
        assert_eq!(Curve::through(&[(100, 50.0)]).unwrap().at(300), 150.0);
        for points in [
            &[][..],
            &[(0, 1.0)],
            &[(64, -1.0)],
            &[(64, f64::NAN)],
            &[(64, f64::INFINITY)],
            &[(64, 2.0), (64, 3.0)],
            &[(64, 2.0), (32, 3.0)],
            &[(64, 2.0), (128, 1.0)],
        ] {
            assert!(Curve::through(points).is_none(), "{points:?}");
        }
    }
}
