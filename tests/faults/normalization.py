"""Faults in the norms."""

from __future__ import annotations

from faults import TORCH, Fault

N = "normalization"
BATCH, SHARED, LAYER, LAYERS = "norms/batch.py", "norms/standardize.py", "norms/layer.py", "models/layers.py"
TESTS = "tests/test_norms.py::"
FUSED = TESTS + "test_the_fused_kernels_equal_the_formulas_and_keep_the_memory_format"
TAKEN = TESTS + "test_the_fused_kernels_are_really_taken_and_by_our_own_classes_only"
# one ghost batch is batch norm; no search for the smallest example, as the tests by hypothesis make
GHOSTS = BATCH_NORM = TESTS + "test_ghost_batches_are_separate_batch_norms"
OTHERS = TESTS + "test_half_precision"

FAULTS = (
    Fault(
        "wrong-axis", N, BATCH, "(0, *range(2, x.dim())) if", "(0, *range(3, x.dim())) if",
        "batch norm takes its statistics over one axis too few", (BATCH_NORM,),
    ),
    Fault(
        "variance-cancels", N, "norms/standardize.py", "var = centered.square().mean(dims, keepdim=True)",
        "var = (x.square().mean(dims, keepdim=True) - mean.square()).clamp_min(0)",
        "the variance is E[x²] - E[x]², which has few digits where the mean is large",
        ("tests/test_checks.py::test_layers_that_are_right_hold",),
    ),
    Fault(
        "wrong-axis-instance", N, "norms/instance.py", "tuple(range(2, x.dim())), self",
        "tuple(range(3, x.dim())), self",
        "instance norm takes its statistics over one axis too few",
        (OTHERS,),
    ),
    Fault(
        "wrong-axis-layer", N, LAYER, "tuple(range(x.dim() - len(shape), x.dim()))", "tuple(range(1, x.dim()))",
        "layer norm takes its statistics over every axis but the first",
        (OTHERS,),
    ),
    Fault(
        "wrong-groups", N, LAYER, "x.unflatten(1, (self.num_groups, -1))",
        "x.unflatten(1, (-1, self.num_groups)).transpose(1, 2)",
        "group norm takes every G-th channel into a group", (OTHERS,),
    ),
    Fault(
        "rms-centered", N, LAYER, "wide = widen(x)", "wide = widen(x) - widen(x).mean(self._dims(x), keepdim=True)",
        "RMS norm subtracts the mean", (OTHERS,),
    ),
    Fault(
        "biased-variance-stored", N, SHARED, "var * (n / (n - 1))", "var",
        "the running variance takes the biased variance", (BATCH_NORM,),
    ),
    Fault(
        "unbiased-normalizes", N, SHARED, "rstd = (var + eps).rsqrt()",
        "rstd = (var * (x.numel() / max(1, x.numel() - var.numel())) + eps).rsqrt()",
        "the unbiased variance normalizes", (BATCH_NORM,),
    ),
    Fault(
        "eps-outside-root", N, SHARED, "rstd = (var + eps).rsqrt()", "rstd = 1 / (var.sqrt() + eps)",
        "epsilon is added to the standard deviation in training", (BATCH_NORM,),
    ),
    Fault(
        "eps-outside-root-inference", N, SHARED, "(widen(self.running_var) + self.eps).rsqrt()",
        "1 / (widen(self.running_var).sqrt() + self.eps)",
        "epsilon is added to the standard deviation at inference", (BATCH_NORM,),
    ),
    Fault(
        "momentum-swapped", N, SHARED, "running.lerp_(new.to(running.dtype), factor)",
        "running.lerp_(new.to(running.dtype), 1 - factor)",
        "momentum weighs the old statistics in place of the new", (BATCH_NORM,),
    ),
    Fault(
        "momentum-none", N, BATCH, "1.0 / float(self.num_batches_tracked)",
        "1.0 / (1.0 + float(self.num_batches_tracked))",
        "the plain mean over batches counts one batch too many", (BATCH_NORM,),
    ),
    Fault(
        "running-not-used", N, BATCH,
        "self.training or (self.running_mean is None and self.running_var is None)", "True",
        "inference normalizes with the batch's statistics", (BATCH_NORM,),
    ),
    Fault(
        "running-not-updated", N, BATCH, "factor = self.momentum or 0.0", "factor = 0.0",
        "the running statistics stay where they start", (BATCH_NORM,),
    ),
    Fault(
        "gamma-frozen", N, SHARED, "nn.Parameter(torch.empty(shape, **factory)) if wanted",
        'nn.Parameter(torch.empty(shape, **factory), requires_grad=name != "weight") if wanted',
        "gamma takes no gradient", (BATCH_NORM,),
    ),
    Fault(
        "beta-frozen", N, SHARED, "nn.Parameter(torch.empty(shape, **factory)) if wanted",
        'nn.Parameter(torch.empty(shape, **factory), requires_grad=name != "bias") if wanted',
        "beta takes no gradient", (BATCH_NORM,),
    ),
    Fault(
        "mean-without-gradient", N, SHARED, "torch.addcmul(back * grad_sum, grad, scale)", "grad * scale",
        "no gradient flows through the mean", (BATCH_NORM,),
    ),
    Fault(
        "variance-without-gradient", N, SHARED, "torch.addcmul(grad_x, centered, back * rstd * xhat_dot)", "grad_x",
        "no gradient flows through the variance", (BATCH_NORM,),
    ),
    Fault(
        "ghosts-mixed", N, BATCH, "(1, *range(3, x.dim() + 1))", "(0, *range(3, x.dim() + 1))",
        "an example shares its statistics with one example of each ghost batch", (GHOSTS,),
    ),
    Fault(
        "ghosts-one-batch", N, BATCH, "return batch // size, size", "return 1, batch",
        "ghost batch norm normalizes the whole batch", (GHOSTS,),
    ),
    Fault(
        "ghosts-momentum", N, LAYERS, "1 - 0.9 ** (1 / len(parts))", "0.1",
        "ghost batches of torch's norm each move the running statistics by the full momentum",
        ("tests/test_models.py::test_ghost_batch_norm_of_another_namespace_equals_ours",),
    ),
    Fault(
        "borrowed-own-ghost", N, LAYERS, "shift = 1 + (", "shift = 0 + (",
        "borrowed noise may come from the example's own ghost batch",
        ("tests/test_batch_noise.py::test_borrowed_noise_never_takes_its_own_ghost_batch",),
    ),
    Fault(
        "half-precision-sums", N, SHARED, "return x.float() if x.dtype in _HALF else x", "return x",
        "half precision inputs have half precision statistics", (OTHERS,),
    ),
    Fault(
        "reestimated-with-momentum", N, "probes/inference.py", "m.momentum = None  # the plain mean over batches", "",
        "re-estimated statistics are a moving mean", (
            "tests/test_inference.py::test_reestimated_statistics_are_the_mean_over_the_batches_with_the_final_weights",
        ),
    ),
    Fault(
        "torch-batch-norm-eps", N, TORCH, "torch.nn.functional.batch_norm",
        "lambda *a: honest(*a[:-1], 2 * a[-1])",
        "torch's batch norm takes twice the epsilon", (BATCH_NORM,),
    ),
    Fault(
        "torch-var-correction", N, TORCH, "torch.var_mean", "lambda *a, **k: honest(*a, **{**k, 'correction': 1})",
        "torch.var_mean always gives the unbiased variance",
        ("tests/test_models.py::test_detached_layer_norm_has_layer_norms_values_and_another_gradient",),
    ),
    Fault(
        "torch-rsqrt-fast", N, TORCH, "torch.Tensor.rsqrt", "lambda x: honest(x) * (1 + 1e-4)",
        "torch's reciprocal root is wrong in the fourth digit", (BATCH_NORM,),
    ),
    Fault(
        "kernel-frozen-statistics", N, BATCH, "self.bias, True, factor, self.eps)", "self.bias, True, 0.0, self.eps)",
        "the fused kernel leaves the running statistics where they are", (FUSED,),
    ),
    Fault(
        "kernel-other-eps", N, LAYER, "self.num_groups, self.weight, self.bias, self.eps)",
        "self.num_groups, self.weight, self.bias)", "the fused group norm takes torch's own epsilon", (FUSED,),
    ),
    Fault(
        "kernel-no-beta", N, LAYER, "self.normalized_shape, self.weight, self.bias, self.eps)",
        "self.normalized_shape, self.weight, None, self.eps)", "the fused layer norm leaves beta out", (FUSED,),
    ),
    Fault(
        "kernel-for-ghosts", N, BATCH, "if self.fused and groups is None and", "if self.fused and",
        "ghost batches take the kernel of the whole batch", (TAKEN,),
    ),
    Fault(
        "kernel-for-subclasses", N, "norms/__init__.py", "and type(layer) in _WITH_KERNEL", "",
        "a user's subclass is trained with torch's kernel in place of its own", (TAKEN,),
    ),
    Fault(
        "batches-not-counted", N, "train/loop.py", "            norms.count_batches(self.net, step - begin)\n", "",
        "batch norm does not count its batches in training",
        ("tests/test_train.py::test_training_takes_the_fused_kernels_and_goes_as_with_the_formulas",),
    ),
)  # fmt: skip
