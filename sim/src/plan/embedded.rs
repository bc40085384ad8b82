//! The plans that the program carries.

/// Their texts, each with its name, in the order in which they are shown.
const PLANS: [(&str, &str); 11] = [
    ("fig2", include_str!("../../plans/fig2.toml")),
    ("ablation", include_str!("../../plans/ablation.toml")),
    ("latency-blocked", include_str!("../../plans/latency-blocked.toml")),
    ("latency-running", include_str!("../../plans/latency-running.toml")),
    ("oversubscription", include_str!("../../plans/oversubscription.toml")),
    ("idle-vms", include_str!("../../plans/idle-vms.toml")),
    ("sensitivity", include_str!("../../plans/sensitivity.toml")),
    ("many-core", include_str!("../../plans/many-core.toml")),
    ("validation", include_str!("../../plans/validation.toml")),
    ("validation-two-cores", include_str!("../../plans/validation-two-cores.toml")),
    ("smoke", include_str!("../../plans/smoke.toml")),
];

/// The plans that the program carries: their names and their texts.
pub fn embedded() -> impl Iterator<Item = (&'static str, &'static str)> {
    PLANS.into_iter()
}
