//! Every signal and strategy of this crate under the laws.

use t3s_core::{
    laws,
    registry::{Kind, Registry},
    toml,
};

#[test]
fn with_default_options() {
    let linked = Registry::linked().expect("no clash");
    for (kind, expected) in [(Kind::Signal, 10), (Kind::Strategy, 14)] {
        match laws::registry(&linked, kind) {
            Ok(count) => assert_eq!(count, expected, "{kind}"),
            Err(broken) => panic!("{broken}"),
        }
    }
}

#[test]
fn with_other_options() {
    let linked = Registry::linked().expect("no clash");
    for (kind, name, options) in [
        (Kind::Signal, "delta-logp", "from = 'step:5'\nto = 'final'"),
        (Kind::Signal, "rank", "at = 'reference'"),
        (
            Kind::Strategy,
            "t3s",
            "signal = 'entropy@base'\nthreshold = 1.0",
        ),
        (Kind::Strategy, "inverse-t3s", "threshold = -0.5"),
        (
            Kind::Strategy,
            "static-confidence",
            "mask = 'low'\nshare = 0.35\nscope = 'example'",
        ),
        (Kind::Strategy, "static-confidence", "share = 1.0"),
        (Kind::Strategy, "random", "share = 0.07\nscope = 'example'"),
    ] {
        let options: toml::Table = options.parse().expect("TOML");
        let entry = linked.get(kind, name).expect("registered");
        if let Err(broken) = laws::registration(entry, &options) {
            panic!("{options}\n{broken}");
        }
    }
}
