"""Faults in the networks."""

from __future__ import annotations

from faults import TORCH, Fault

M = "models"
ARMS, RESNET, LAYERS, INIT, PLAIN = (
    "models/arms.py", "models/resnet.py", "models/layers.py", "models/__init__.py", "models/plain.py",
)  # fmt: skip
TESTS = "tests/test_models.py::"
ALPHA = TESTS + "test_skipinit_starts_at_zero_one_or_one_over_root_d_and_is_learned_unless_fixed"
BLOCK = TESTS + "test_a_block_computes_skip_plus_alpha_times_branch_over_divide"
VARIANCE = TESTS + "test_weights_have_he_variance_and_the_classifier_one_over_fan_in"
ZEROED = TESTS + "test_fixup_zeroes_the_last_convolution_of_each_branch_and_the_classifier_and_nothing_else"
ALONE = TESTS + "test_a_run_in_a_bundle_equals_the_same_run_alone_in_logits_and_gradients"
SHARED = TESTS + "test_all_arms_of_a_seed_share_the_draws_of_every_layer_they_have"

FAULTS = (
    Fault(
        "alpha-starts-at-one", M, ARMS, '"skipinit_0": Arm(alpha=0.0)', '"skipinit_0": Arm(alpha=1.0)',
        "SkipInit's alpha starts at 1", (ALPHA,),
    ),
    Fault(
        "alpha-not-learned", M, RESNET, "alpha, arm.alpha_learned, fixup=False", "alpha, False, fixup=False",
        "SkipInit's alpha is not learned", (ALPHA,),
    ),
    Fault(
        "alpha-per-stage", M, RESNET, "stride, arm, 3 * per_stage, members", "stride, arm, per_stage, members",
        "1/sqrt(d) counts the blocks of one stage", (ALPHA,),
    ),
    Fault(
        "branch-scaled-twice", M, RESNET, "branch = self.scale(branch)", "branch = self.scale(self.scale(branch))",
        "the branch is scaled twice", (BLOCK,),
    ),
    Fault(
        "skip-normalized", M, RESNET, "(x if self.project is None else",
        "((x - x.mean((0, 2, 3), keepdim=True)) if self.project is None else",
        "the skip path is centered in every arm", (BLOCK,),
    ),
    Fault(
        "skip-normalized-by-norm", M, RESNET, "(x if self.project is None else",
        "((x if len(self.activate1) < 2 else self.activate1[0](x)) if self.project is None else",
        "the skip path is normalized where the branch is", (
            TESTS + "test_the_skip_path_of_a_block_with_norm_is_the_input_itself",
        ),
    ),
    Fault(
        "projection-of-raw-input", M, RESNET, "else self.project(activated))", "else self.project(x))",
        "the projection takes the input before the norm and the nonlinearity", (BLOCK,),
    ),
    Fault(
        "he-gain", M, INIT, "math.sqrt((1 if classifier else 2) / fan_in)", "math.sqrt(1 / fan_in)",
        "hidden weights have variance 1 / fan-in", (VARIANCE,),
    ),
    Fault(
        "classifier-gain", M, INIT, "math.sqrt((1 if classifier else 2) / fan_in)", "math.sqrt(2 / fan_in)",
        "the classifier has He's gain", (VARIANCE,),
    ),
    Fault(
        "divide-by-two", M, ARMS, "Arm(divide=math.sqrt(2))", "Arm(divide=2.0)", "the block is divided by 2", (BLOCK,),
    ),
    Fault(
        "divide-branch-only", M, RESNET, "return y / self.divide if self.divide != 1 else y",
        "return y - branch + branch / self.divide if self.divide != 1 else y", "only the branch is divided", (BLOCK,),
    ),
    Fault(
        "fixup-last-not-zero", M, INIT, "(classifier or layer in lasts)", "classifier",
        "Fixup's last layer of a branch is not zero", (ZEROED,),
    ),
    Fault(
        "fixup-depth-scale", M, INIT, "scale *= blocks**-0.5", "scale *= 1 / blocks",
        "Fixup scales the first convolution by 1 / d",
        (TESTS + "test_fixup_scales_the_first_convolution_of_each_branch_by_one_over_root_d",),
    ),
    Fault(
        "draws-differ-between-arms", M, INIT, "            for g in generators:\n",
        "            for g in generators[:0]:\n",
        "without skip paths the later layers draw other weights than in other arms", (SHARED,),
    ),
    Fault(
        "members-share-draws", M, INIT, "generator=g) for g in generators]",
        "generator=torch.Generator().manual_seed(0)) for _ in generators]",
        "all runs and layers draw from one seed", (TESTS + "test_seeds_differ_and_are_reproducible",),
    ),
    Fault(
        "layer-norm-over-runs", M, LAYERS, "norms.GroupNorm(members, features", "norms.GroupNorm(1, features",
        "layer norm on images is over all runs of a bundle",
        (TESTS + "test_layer_norm_on_images_is_over_channels_and_pixels_of_one_run",),
    ),
    Fault(
        "norm-after-nonlinearity", M, PLAIN, "*norm_layer(arm, width, members, norms, 2), nonlinearity()]",
        "nonlinearity(), *norm_layer(arm, width, members, norms, 2)]",
        "the norm of a perceptron stands behind the nonlinearity",
        (TESTS + "test_dropout_of_an_mlp_stands_before_its_last_layer",),
    ),
    Fault(
        "resnet-norm-after-addition", M, RESNET, "return F.relu(x + branch)", "return F.relu(self.norm2(x + branch))",
        "a post-activation block normalizes after the addition too",
        (TESTS + "test_a_post_activation_block_is_that_of_he_et_al",),
    ),
    Fault(
        "dropout-not-rescaled", M, LAYERS, "(self.uniform(x) >= self.probability) / (1 - self.probability)",
        "(self.uniform(x) >= self.probability)", "what dropout keeps is not divided by the share kept",
        (TESTS + "test_dropout_of_a_wrn_acts_on_the_features_before_the_classifier_and_in_training_only",),
    ),
    Fault(
        "torch-conv-flipped", M, TORCH, "torch.nn.functional.conv2d",
        "lambda x, w, *a, **k: honest(x, w.flip((2, 3)), *a, **k)",
        "torch's convolution turns its kernels round", (TESTS + "test_torchs_convolution_and_relu_are_the_textbooks",),
    ),
    Fault(
        "torch-relu-leaks", M, TORCH, "torch.nn.functional.relu",
        "lambda x, inplace=False: torch.nn.functional.leaky_relu(x, 0.01)",
        "torch's ReLU passes a hundredth of what is negative",
        (TESTS + "test_torchs_convolution_and_relu_are_the_textbooks",),
    ),
    Fault(
        "torch-randn-one-seed", M, TORCH, "torch.randn",
        "lambda *a, **k: honest(*a, **{**k, 'generator': torch.Generator().manual_seed(0)})",
        "torch's normal numbers do not obey their generator", (TESTS + "test_seeds_differ_and_are_reproducible",),
    ),
)  # fmt: skip
