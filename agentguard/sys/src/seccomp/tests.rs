use super::*;

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// What the kernel's interpreter would answer.
fn answer(filter: &SyscallFilter, arch: u32, nr: u32, args: [u32; 6]) -> u32 {
    let mut at = 0;
    let mut value = 0;
    loop {
        let step = filter.0[at];
        at += 1;
        let skip = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            LOAD => {
                value = match step.k {
                    NR => nr,
                    ARCH_AT => arch,
                    low => {
                        assert_eq!((low - ARGS) % 8, 0);
                        args[((low - ARGS) / 8) as usize]
                    }
                }
            }
            AND => value &= step.k,
            IF_EQUAL => at += skip(value == step.k),
            IF_AT_LEAST => at += skip(value >= step.k),
            GO => at += step.k as usize,
            ANSWER => return step.k,
            other => panic!("unknown code {other}"),
        }
    }
}

const fn one(argument: u32, mask: u32, is: Is) -> Test {
    Test { argument, mask, is }
}

#[test]
fn every_test_of_a_rule_must_hold() {
    const RULES: [SyscallRule; 3] = [
        SyscallRule {
            call: 41,
            when: &[one(0, u32::MAX, Is::NoneOf(&[1, 2, 10]))],
            errno: 1,
        },
        SyscallRule {
            call: 41,
            when: &[
                one(0, u32::MAX, Is::OneOf(&[2, 10])),
                one(1, 0xf, Is::NoneOf(&[1, 2])),
                one(2, u32::MAX, Is::OneOf(&[0, 7])),
            ],
            errno: 2,
        },
        SyscallRule {
            call: 7,
            when: &[],
            errno: 38,
        },
    ];
    let filter = SyscallFilter::refusing(&RULES);
    for (nr, args, expected) in [
        (41, [17, 0, 0], refusal(1)),
        (41, [1, 9, 0], ALLOW),
        (41, [2, 1, 0], ALLOW),
        (41, [2, 0x80001, 0], ALLOW),
        (41, [2, 3, 0], refusal(2)),
        (41, [10, 0x8000a, 7], refusal(2)),
        (41, [10, 10, 6], ALLOW),
        (7, [0, 0, 0], refusal(38)),
        (42, [17, 0, 0], ALLOW),
    ] {
        let [a, b, c] = args;
        let said = answer(&filter, ARCH, nr, [a, b, c, 0, 0, 0]);
        assert_eq!(said, expected, "{nr} {args:?}");
    }
}

#[test]
fn other_architectures_do_not_get_by() {
    let filter = SyscallFilter::refusing(&[]);
    const I386: u32 = 0x4000_0003;
    assert_eq!(answer(&filter, I386, 1, [0; 6]), KILL);
    assert_eq!(
        answer(&filter, ARCH, X32_BIT | 41, [0; 6]),
        refusal(libc::ENOSYS)
    );
    assert_eq!(
        answer(&filter, ARCH, u32::MAX, [0; 6]),
        refusal(libc::ENOSYS)
    );
    assert_eq!(answer(&filter, ARCH, 41, [0; 6]), ALLOW);
}
