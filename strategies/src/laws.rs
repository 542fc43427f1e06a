//! Every signal and strategy of this crate under the laws.

use t3s_core::{
    laws,
    registry::{Kind, Registry},
    toml,
};

#[test]
fn with_default_options() {
    let linked = Registry::linked().expect("no clash");
    for (kind, expected) in [(Kind::Signal, 10), (Kind::Strategy, 21)] {
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
        (Kind::Strategy, "yet-to-learn", "tau = 0.0"),
        (
            Kind::Strategy,
            "static-confidence",
            "mask = 'low'\nshare = 0.35\nscope = 'example'",
        ),
        (Kind::Strategy, "static-confidence", "share = 1.0"),
        (Kind::Strategy, "random", "share = 0.07\nscope = 'example'"),
        (Kind::Strategy, "t3s", "share = 0.2\nscope = 'example'"),
        (Kind::Strategy, "t3s", "sides = 'both'\nthreshold = 0.5"),
        (Kind::Strategy, "t3s", "sides = 'both'\nshare = 0.07"),
        (Kind::Strategy, "inverse-t3s", "share = 0.2"),
        (Kind::Strategy, "static-confidence", "threshold = -1.0"),
        (
            Kind::Strategy,
            "static-confidence",
            "mask = 'low'\nthreshold = -1.0",
        ),
        (
            Kind::Strategy,
            "gradient-norm",
            "mask = 'low'\nscope = 'example'\nshare = 0.5",
        ),
        (
            Kind::Strategy,
            "gradient-sketch",
            "signal = 'anchor-alignment'\nmask = 'high'",
        ),
        (Kind::Strategy, "entropy", "keep = 0.07\nscope = 'example'"),
        (Kind::Strategy, "rho-1", "student = 'current'\nkeep = 0.3"),
        (Kind::Strategy, "rho-1", "student = 'logp@reference'"),
        (Kind::Strategy, "token-cleaning", "scope = 'example'"),
        (
            Kind::Strategy,
            "token-cleaning",
            "threshold = 0.5\nstudent = 'current'",
        ),
        (Kind::Strategy, "sstoken", "student = 'logp@bottleneck'"),
        (Kind::Strategy, "dft", "confidence = 'logp@base'"),
        (Kind::Strategy, "focal", "gamma = 0.5"),
        (
            Kind::Strategy,
            "focal",
            "gamma = 0.0\nconfidence = 'logp@final'",
        ),
        (Kind::Strategy, "profit", "threshold = 1.0"),
        (Kind::Strategy, "profit", "confidence = 'logp@base'"),
        (
            Kind::Strategy,
            "union",
            "of = [{ strategy = 'random', share = 0.9 }, { strategy = 'dft' }]",
        ),
        (Kind::Strategy, "union", "of = []"),
        (
            Kind::Strategy,
            "intersect",
            "of = [{ strategy = 't3s' }, { strategy = 'inverse-t3s' }]",
        ),
        (
            Kind::Strategy,
            "product",
            "of = [{ strategy = 'dft' }, { strategy = 'focal' }, { strategy = 't3s' }]",
        ),
        (
            Kind::Strategy,
            "invert",
            "of = { strategy = 'union', of = [{ strategy = 't3s' }, { strategy = 'profit' }] }",
        ),
        (
            Kind::Strategy,
            "schedule",
            "steps = 3\nfirst = { strategy = 'dft' }\nthen = { strategy = 'entropy' }",
        ),
        (
            Kind::Strategy,
            "schedule",
            "steps = 2\nfirst = { strategy = 'dft' }\nthen = { strategy = 'entropy' }",
        ),
        (
            Kind::Strategy,
            "shuffled",
            "of = { strategy = 'static-confidence', scope = 'example' }",
        ),
        (Kind::Strategy, "shuffled", "of = { strategy = 'dft' }"),
        (
            Kind::Signal,
            "mean-alignment",
            "at = 'bottleneck'\nmeasure = 'inner-product'",
        ),
        (Kind::Signal, "anchor-alignment", "threshold = 0.5"),
        (
            Kind::Signal,
            "anchor-alignment",
            "measure = 'inner-product'\nat = 'final'\nto = 'step:4'",
        ),
        (Kind::Signal, "trajectory-slope", "from = 1"),
        (Kind::Signal, "trajectory-rise", "to = 1"),
    ] {
        let options: toml::Table = options.parse().expect("TOML");
        let entry = linked.get(kind, name).expect("registered");
        if let Err(broken) = laws::registration(entry, &options) {
            panic!("{options}\n{broken}");
        }
    }
}
