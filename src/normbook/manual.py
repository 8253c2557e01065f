"""What `normbook --help` says beyond its list of options and commands."""

SAYS = """Normalization, reproduced: run, measure and judge claims about batch normalization.

Every chapter is a notebook that declares its claims, trains what they need, and judges each from an interval. A run is
compared with the verdicts that are recorded. `normbook COMMAND --help` has the options of a command.
"""
MORE = """
\b
Exit status:
  0    every verdict is as expected; for other commands: done
  1    a verdict differs from the expected one, or a control failed
  2    bad input; one line on stderr says what is wrong
  3    a chapter or normbook itself crashed; --debug shows where
  130  stopped with Ctrl-C
  141  whoever read the output has gone

\b
Scales:
  quick  digits of 8x8 pixels, one to three minutes a chapter on a CPU; always trains
  cifar  CIFAR-10 at 16x16; trains what is not recorded, and judges the records
  paper  the paper's own protocol, for GPUs; `run N --scale paper --plan` says its cost
  tiny   tries the code in seconds, judges nothing

\b
Files:
  normbook-results/NN_slug/  notebook.ipynb and verdicts.json of a run (--out DIR: DIR)
  results/SCALE/verdicts/    the expected verdicts
  results/SCALE/records/     one file a run, at scales cifar and paper (--out DIR: DIR/records)
  results/stability/         verdicts of runs with other base seeds, and in other ways
  _build/html/index.html     the built book; _build/normbook.pdf the printed one
  ~/.cache/normbook/         decoded images

\b
Examples:
  normbook run 5                         run chapter 5, compare its verdicts
  normbook run all --norm torch.nn       every chapter with torch's own layers
  normbook run 5 --scale paper --plan    what the paper's own protocol costs
  normbook claims --json                 all claims and verdicts, for a program
  normbook check --norm mine.norms       test layers of your own
  normbook book && normbook open         build the book and look at it
"""
