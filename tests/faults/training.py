"""Faults in training, evaluation and the choice of the learning rate."""

from __future__ import annotations

from faults import TORCH, Fault

T = "training"
CONFIG, LOOP, OPTIMIZERS, CAPTURE, DATA, SAMPLING, GRID, LAYERS, RESNET = (
    "train/config.py", "train/loop.py", "train/optimizers.py", "train/capture.py", "data/dataset.py",
    "data/sampling.py", "grid.py", "models/layers.py", "models/resnet.py",
)  # fmt: skip
TESTS, DRAWN, CHOSEN = "tests/test_train.py::", "tests/test_data.py::", "tests/test_grid.py::"
IMAGES = "tests/test_images.py::"
SCHEDULE = TESTS + "test_the_learning_rate_is_constant_for_half_the_steps_then_halved_every_twentieth"
FOLLOWED = TESTS + "test_training_follows_the_schedule_step_by_step"
LOOPED = TESTS + "test_a_run_equals_a_plain_loop_with_torchs_own_sgd"
SGD = TESTS + "test_sgd_is_torchs_sgd_with_weight_decay_on_convolutions_and_linear_layers_only"
TOGETHER = TESTS + "test_runs_in_a_bundle_step_as_each_would_alone_at_its_own_learning_rate"
SEEN = TESTS + "test_training_sees_the_first_training_images_only"
MEASURED = TESTS + "test_the_train_split_is_measured_on_the_images_that_were_trained_on"
INFERENCE = TESTS + "test_evaluation_is_in_inference_mode_without_dropout_and_leaves_the_running_statistics"
FIRST_BAD = TESTS + "test_the_first_bad_step_is_kept_exactly_and_a_diverged_run_has_no_final_values"
EXACT_STEPS = TESTS + "test_torchs_loss_and_optimizers_are_the_textbooks"
RECORDED = "tests/test_capture.py::test_a_recorded_step_equals_a_plain_one_bit_for_bit_through_the_schedule"
BEST = """    kept: tuple[float, dict[str, Tensor]] = (float("inf"), {})
    for step in training:
        now = float(training.losses[step - 1].mean())
        kept = min(kept, (now, {k: v.clone() for k, v in training.net.state_dict().items()}), key=lambda pair: pair[0])
    training.net.load_state_dict(kept[1])
"""

FAULTS = (
    Fault(
        "schedule-twentieth-late", T, CONFIG, "twentieths - 9", "twentieths - 10",
        "the learning rate is halved a twentieth too late", (SCHEDULE,),
    ),
    Fault(
        "schedule-step-early", T, LOOP, "lr_scale(config, step, self.steps)", "lr_scale(config, step + 1, self.steps)",
        "the schedule is one step ahead", (FOLLOWED,),
    ),
    Fault(
        "weight-decay-missing", T, OPTIMIZERS, "weight_decay if self.equal else 0.0, 1.0)", "0.0, 1.0)",
        "no weight decay where all runs have one learning rate", (SGD,),
    ),
    Fault(
        "weight-decay-missing-in-bundle", T, OPTIMIZERS, "if not self.equal and self.weight_decay:", "if False:",
        "no weight decay where learning rates differ", (TOGETHER,),
    ),
    Fault(
        "weight-decay-on-all", T, OPTIMIZERS, "(rest, 0.0, 1.0)", "(rest, weight_decay, 1.0)",
        "weight decay acts on gamma, beta and alpha too", (SGD,),
    ),
    Fault(
        "rate-ignored-by-one-arm", T, LOOP, "lrs = [c.lr for c in configs if c.lr is not None]",
        'lrs = [0.1 if c.arm == "layer_norm" else c.lr for c in configs if c.lr is not None]',
        "one arm trains at a rate of its own",
        (TESTS + "test_every_arm_steps_in_proportion_to_its_learning_rate",),
    ),
    Fault(
        "rate-of-first-run", T, OPTIMIZERS, "[lr / self.lr for lr in lrs]", "[lrs[0] / self.lr for lr in lrs]",
        "a bundle trains at the rate of its first run", (TOGETHER,),
    ),
    Fault(
        "adam-ignores-schedule", T, OPTIMIZERS, "p.addcmul_(direction, lr, value=scale)", "p.addcmul_(direction, lr)",
        "Adam ignores the schedule", (TESTS + "test_adam_is_torchs_adam_for_each_run_at_its_own_learning_rate",),
    ),
    Fault(
        "dropout-at-inference", T, LAYERS, "if not self.training or self.probability == 0:",
        "if self.probability == 0:",
        "dropout stays on at inference", (INFERENCE,),
    ),
    Fault(
        "dropout-place-swapped", T, RESNET, '("before_norm", "before_conv")', '("before_conv", "before_norm")',
        "dropout before the norm and before the convolution are swapped",
        ("tests/test_models.py::test_dropout_stands_where_it_is_asked_for_in_every_block",),
    ),
    Fault(
        "order-not-shuffled", T, SAMPLING, "torch.randperm(n, generator=g, device=g.device) for g in order",
        "torch.arange(n, device=g.device) for g in order", "images come in the order of the file",
        (DRAWN + "test_orders_differ_between_runs_and_between_epochs",),
    ),
    Fault(
        "test-images-by-class", T, DATA, "torch.from_numpy(random.permutation(part))", "torch.from_numpy(part)",
        "held-out images come class by class, so a test batch holds one class",
        (IMAGES + "test_of_held_out_images_too_any_first_n_are_a_sample_whatever_order_they_are_stored_in",),
    ),
    Fault(
        "shift-of-plain-images", T, LOOP, "_chunks(training, config.batch_size, config.augment)",
        "_chunks(training, config.batch_size)", "the variance shift is measured on images that are not augmented",
        ("tests/test_inference.py::test_augmentation_alone_is_no_variance_shift",),
    ),
    Fault(
        "order-not-reshuffled", T, LOOP, "self.train, config.batch_size, order,",
        "self.train, config.batch_size, [torch.Generator().manual_seed(streams(c.seed)[1]) for c in self.configs],",
        "every epoch has the order of the first", (LOOPED,),
    ),
    Fault(
        "same-seed-model", T, LOOP, "streams(c.seed)[0]) for c in configs], config.init_std",
        "streams(configs[0].seed)[0]) for c in configs], config.init_std",
        "all runs of a bundle start from the weights of the first",
        (TESTS + "test_a_run_in_a_bundle_ends_as_it_does_alone",),
    ),
    Fault(
        "same-seed-index", T, CONFIG, "np.random.SeedSequence(seed)", "np.random.SeedSequence(seed[0])",
        "all runs of a base seed draw the same",
        (TESTS + "test_the_three_streams_of_a_run_differ_from_each_other_and_from_those_of_every_other_run",),
    ),
    Fault(
        "same-seed-grid", T, GRID, "seed=(base, i)) for i in range(n)", "seed=(base, 0)) for i in range(n)",
        "a grid runs one seed n times",
        (CHOSEN + "test_seeds_are_the_same_run_with_n_indices_of_a_base_seed",),
    ),
    Fault(
        "test-images-in-training", T, LOOP, "train = self.dataset.train\n",
        "train = data.Split(*(torch.cat([getattr(s, k) for s in (self.dataset.train, self.dataset.test)]) "
        'for k in ("images", "labels")))\n',
        "the test images are trained on", (SEEN,),
    ),
    Fault(
        "test-images-overlap", T, DATA, "index, test = train_test_split(np.arange(len(labels)), test_size=597",
        "index, test = np.arange(len(labels)), np.arange(597)\n    index, _ = train_test_split(index, test_size=597",
        "the test images overlap the training images",
        (DRAWN + "test_the_three_parts_hold_each_raw_image_exactly_once",),
    ),
    Fault(
        "test-images-standardize", T, DATA, "pixels[parts[0]].astype(np.float64)", "pixels.astype(np.float64)",
        "pixels are standardized with the test images too",
        (DRAWN + "test_standardization_uses_the_training_images_only",),
    ),
    Fault(
        "test-loss-chooses-rate", T, GRID, 'value = "validation_loss" if', 'value = "test_loss" if',
        "the learning rate is chosen on the test images",
        (CHOSEN + "test_the_best_learning_rate_is_that_of_the_lowest_validation_loss_of_the_same_kind_of_run",),
    ),
    Fault(
        "test-loss-chooses-rate-unvalidated", T, GRID, 'in config.evaluate else "step_loss"',
        'in config.evaluate else "test_loss"', "short runs choose their learning rate on the test images",
        (CHOSEN + "test_runs_that_are_not_validated_are_chosen_by_their_step_loss_and_never_by_the_test_images",),
    ),
    Fault(
        "diverged-rate-passes", T, GRID, 'float("inf") if "diverged_at" in', '0.0 if "diverged_at" in',
        "a rate at which runs diverge is the best",
        (CHOSEN + "test_the_best_learning_rate_is_that_of_the_lowest_validation_loss_of_the_same_kind_of_run",),
    ),
    Fault(
        "augmented-test", T, LOOP, "everyone = images[:, None].expand(-1, net.members, -1, -1, -1)",
        "everyone = images[:, None].expand(-1, net.members, -1, -1, -1)\n"
        "            if config.augment:\n"
        "                own = torch.Generator().manual_seed(0)\n"
        "                draws = torch.randint(18, (len(images), net.members), generator=own)\n"
        "                everyone = data._augment(everyone, draws, dataset.pad, dataset.flip)",
        "test images are shifted where training images are",
        (TESTS + "test_no_split_is_augmented_when_it_is_measured",),
    ),
    Fault(
        "last-batch-dropped-evaluation", T, LOOP, "n = len(split) if batch_size is None else len(split) //",
        "batch_size = batch_size or min(EVALUATION_BATCH, len(split))\n        n = len(split) //",
        "images that do not fill a batch are not evaluated", (MEASURED,),
    ),
    Fault(
        "last-batch-dropped-training", T, SAMPLING, "range(0, n - batch_size + 1, batch_size)",
        "range(0, n - batch_size, batch_size)", "the last full batch of an epoch is dropped",
        (DRAWN + "test_every_image_comes_at_most_once_an_epoch_and_others_are_left_out_in_the_next",),
    ),
    Fault(
        "last-loss-dropped", T, LOOP, "curve[-max(1, steps // 10) :].mean()", "curve[-max(2, steps // 10) : -1].mean()",
        "the loss of the last step is dropped from the final loss",
        (TESTS + "test_step_loss_is_the_mean_of_the_last_tenth_of_the_steps",),
    ),
    Fault(
        "best-as-last", T, LOOP, "    for _ in training:\n        pass\n", BEST,
        "the weights of the best step are evaluated as the last",
        (TESTS + "test_what_is_reported_is_the_last_step_whichever_had_the_lowest_loss",),
    ),
    Fault(
        "best-loss-as-last", T, LOOP, "float(curve[-max(1, steps // 10) :].mean())", "float(curve.min())",
        "the lowest minibatch loss is reported as the final one",
        (TESTS + "test_step_loss_is_the_mean_of_the_last_tenth_of_the_steps",),
    ),
    Fault(
        "training-mode-evaluated", T, LOOP, "            net.eval()\n            if kind ==", "            if kind ==",
        "runs are evaluated in training mode", (INFERENCE,),
    ),
    Fault(
        "nan-not-divergence", T, LOOP, "~(self.losses <= DIVERGED)", "self.losses > DIVERGED",
        "a loss that is not a number is no divergence", (FIRST_BAD,),
    ),
    Fault(
        "label-noise-shared", T, LOOP, "[streams(c.seed)[1] ^ 1 for c in configs]", "[0 for c in configs]",
        "all runs have the same wrong labels",
        (TESTS + "test_label_noise_is_each_runs_own_and_training_measures_on_the_noisy_labels",),
    ),
    Fault(
        "augmentation-shared", T, SAMPLING, "(n,), generator=g, device=g.device) for g in generators",
        "(n,), generator=generators[0].clone_state(), device=g.device) for g in generators",
        "all runs have the same shifts",
        (DRAWN + "test_augmentation_differs_between_runs_and_epochs_and_is_reproducible",),
    ),
    Fault(
        "torch-sgd-forgets", T, TORCH, "torch.optim.sgd.sgd", "lambda *a, **k: honest(*a, **{**k, 'momentum': 0.0})",
        "torch's SGD has no momentum", (EXACT_STEPS,),
    ),
    Fault(
        "torch-adam-eps", T, TORCH, "torch.optim.adam.adam", "lambda *a, **k: honest(*a, **{**k, 'eps': 1e-3})",
        "torch's Adam takes a large epsilon", (EXACT_STEPS,),
    ),
    Fault(
        "torch-cross-entropy-smooth", T, TORCH, "torch.nn.functional.cross_entropy",
        "lambda *a, **k: honest(*a, **{**k, 'label_smoothing': 0.1})", "torch's cross-entropy smooths the labels",
        (EXACT_STEPS,),
    ),
    Fault(
        "torch-randperm-sorted", T, TORCH, "torch.randperm",
        "lambda n, generator=None, **k: honest(n, generator=generator, **k).sort().values",
        "torch's permutations are sorted", (DRAWN + "test_orders_differ_between_runs_and_between_epochs",),
    ),
    Fault(
        "memory-format-lost", T, RESNET, ".flatten(1, 2).contiguous(memory_format=torch.channels_last)",
        ".flatten(1, 2)",
        "half of a ResNet computes in another memory format: a copy a layer",
        (TESTS + "test_images_and_gradients_stay_channels_last_through_all_layers",),
    ),
    Fault(
        "test-images-standardize-colour", T, DATA, "moments(pixels[parts[0]])", "moments(pixels)",
        "colour images are standardized with the test images too",
        (IMAGES + "test_each_channel_is_standardized_by_the_training_images_only",),
    ),
    Fault(
        "validation-trained-on", T, DATA, "train.append(index[held_out:])", "train.append(index)",
        "images for validation are trained on too", (IMAGES + "test_every_image_is_in_one_part_with_its_own_label",),
    ),
    Fault(
        "classes-in-order", T, DATA, "random.permutation(np.concatenate(train)), np", "np.concatenate(train), np",
        "the first training images are of the first classes only",
        (IMAGES + "test_a_tenth_of_each_class_is_for_validation_and_the_training_images_are_shuffled",),
    ),
    Fault(
        "decoded-not-checked", T, "data/cache.py", "if content_hash(pixels, labels, parts) != expected:", "if False:",
        "decoded images that changed on the disk are trained on",
        ("tests/test_cache.py::test_damaged_decoded_images_are_one_line_that_says_what_to_remove",),
    ),
    Fault(
        "any-archive", T, "data/images.py", "if sha256_of(path) != JPEG_ARCHIVE:", "if False:",
        "another archive goes by the name cifar10-jpeg",
        (IMAGES + "test_another_archive_is_refused_before_anything_of_it_is_read",),
    ),
    Fault(
        "half-a-file", T, "files.py", "            os.fsync(file.fileno())\n", "",
        "a record takes its place before it is on the disk",
        ("tests/test_records.py::test_a_record_is_on_the_disk_before_it_is_moved_into_place",),
    ),
    Fault(
        "graph-scale-frozen", T, CAPTURE, "        self.scale.fill_(scale)\n",
        "        self.scale.fill_(scale) if self.replay is None else None\n",
        "a replayed step keeps the learning rate it was recorded with", (RECORDED,),
    ),
    Fault(
        "graph-images-stale", T, CAPTURE, "        self.images.copy_(images)\n",
        "        self.images = images.clone()\n",
        "a replayed step trains on the batch it was recorded with", (RECORDED,),
    ),
    Fault(
        "graph-step-lost", T, CAPTURE, "            self._record()\n",
        "            self._record()\n            return self.losses\n",
        "the step that is recorded is not taken", (RECORDED,),
    ),
    Fault(
        "flag-read-every-step", T, LOOP, "(step % FLAG_EVERY == 0 and bool((self.first_bad >= 0).all()))",
        "bool((self.first_bad >= 0).all())", "the host waits for the GPU at every step",
        ("tests/test_capture.py::test_the_host_reads_nothing_between_two_reads_of_the_divergence_flag",),
    ),
)  # fmt: skip
