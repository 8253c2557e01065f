"""Ten faults chosen by somebody who had not read the tests, as they were given; only the suites are ours."""

from __future__ import annotations

from faults import Fault

FAULTS = (
    Fault(
        id="blind-1-reset-keeps-count",
        family="normalization",
        file="norms/standardize.py",
        old="for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):",
        new="for buffer, value in ((self.running_mean, 0), (self.running_var, 1)):",
        what=(
            "reset_running_stats no longer zeroes num_batches_tracked, so re-estimation with momentum=None "
            "averages with 1/(training steps + i) and leaves statistics near 0 and 1: all *_reestimated results "
            "are wrong."
        ),
        suite=(
            "tests/test_inference.py::test_reestimated_statistics_are_the_mean_over_the_batches_with_the_final_weights",
        ),
        blind=True,
    ),
    Fault(
        id="blind-2-ghost-number-for-size",
        family="normalization",
        file="norms/batch.py",
        old="return batch // size, size",
        new="return size, batch // size",
        what=(
            "Ghost batch norm splits into ghost_batch_size groups instead of groups of that size (invisible where"
            " batch = size**2), so every ghost-size comparison runs at another size than recorded."
        ),
        suite=("tests/test_norms.py::test_ghost_batches_are_separate_batch_norms",),
        blind=True,
    ),
    Fault(
        id="blind-3-alpha-as-fixup",
        family="models",
        file="models/resnet.py",
        old="self.scale = Times(members, alpha, arm.alpha_learned, fixup=False)",
        new="self.scale = Times(members, alpha, arm.alpha_learned)",
        what=(
            "SkipInit's learnable alpha is taken for a Fixup scalar and trained at a tenth of the learning rate, "
            "which changes all SkipInit arms."
        ),
        suite=(
            "tests/test_models.py::test_skipinit_starts_at_zero_one_or_one_over_root_d_and_is_learned_unless_fixed",
        ),
        blind=True,
    ),
    Fault(
        id="blind-4-borrowed-noise-gradient",
        family="models",
        file="models/layers.py",
        old="known = ghosts.detach()",
        new="known = ghosts",
        what=(
            "Gradients flow through the borrowed ghost statistics, so the control arm is no longer pure noise but"
            " couples ghost batches as ghost batch norm does; forward values are unchanged."
        ),
        suite=("tests/test_batch_noise.py::test_no_gradient_passes_through_borrowed_noise",),
        blind=True,
    ),
    Fault(
        id="blind-5-statistics-order",
        family="training",
        file="train/loop.py",
        old='for kind in [k for k in ("running", "batch", "reestimated") if k in config.statistics]:',
        new="for kind in sorted(config.statistics):",
        what=(
            "Alphabetical order measures 'reestimated' before 'running', after the running statistics were "
            "overwritten, so the final 'running' losses and accuracies silently equal the re-estimated ones."
        ),
        suite=(
            "tests/test_train.py::test_the_three_kinds_of_statistics_differ_and_running_ones_do_not_depend_on_the_others",
        ),
        blind=True,
    ),
    Fault(
        id="blind-6-random-weights-per-bundle",
        family="training",
        file="train/loop.py",
        old="count = sum(p.numel() for p in affine) // len(configs)",
        new="count = sum(p.numel() for p in affine)",
        what=(
            "With trainable='random' in a bundle of M runs each run trains M times as many random weights as "
            "gamma and beta, so the control has up to 9 times the capacity and depends on the bundle."
        ),
        suite=("tests/test_train.py::test_only_gamma_and_beta_or_as_many_random_weights_learn",),
        blind=True,
    ),
    Fault(
        id="blind-7-relabel-misses-last-class",
        family="training",
        file="data/sampling.py",
        old="drawn = torch.randint(classes, (len(chosen),), generator=generator)",
        new="drawn = torch.randint(classes - 1, (len(chosen),), generator=generator)",
        what=(
            "Label noise never draws the last class (digit 9), so it is not uniform, although the share of wrong "
            "labels is still about share * (1 - 1 / classes)."
        ),
        suite=("tests/test_data.py::test_noisy_labels_are_drawn_uniformly_over_all_classes",),
        blind=True,
    ),
    Fault(
        id="blind-8-lr-of-luckiest-seed",
        family="training",
        file="grid.py",
        old="key=lambda lr: (sum(rates[lr]) / most, lr))",
        new="key=lambda lr: (min(rates[lr]), lr))",
        what=(
            "The learning rate is chosen by its single best seed rather than the mean, so a rate at which all "
            "other seeds diverged can win and bias every arm compared at its best rate."
        ),
        suite=(
            "tests/test_grid.py::test_a_learning_rate_is_as_good_as_the_mean_over_the_scans_seeds_and_no_good_if_one_diverged",
        ),
        blind=True,
    ),
    Fault(
        id="blind-9-control-only-differs",
        family="judging",
        file="claims.py",
        old="return self.control_verdict == (REPRODUCED if self.verdict == NOT_REPRODUCED else NOT_REPRODUCED)",
        new="return self.control_verdict != self.verdict",
        what=(
            "A control counts as holding whenever it merely differs from the verdict: inconclusive controls and "
            "'none planted' pass, so claims without a working check are accepted."
        ),
        suite=("tests/test_claims.py::test_a_control_that_does_not_come_out_not_reproduced_fails",),
        blind=True,
    ),
    Fault(
        id="blind-10-stamp-misses-modules",
        family="judging",
        file="chapters.py",
        old='names |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or a name in one',
        new='names.add(node.module or "")  # the module that the names come from',
        what=(
            "'from normbook import claims, grid' is followed only to the package, so a chapter's stamp misses the"
            " submodules it uses and stale verdicts are shown as current after the code changed."
        ),
        suite=("tests/test_chapters.py::test_the_stamp_sees_code_cells_and_every_module_they_reach",),
        blind=True,
    ),
)
