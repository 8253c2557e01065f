"""Checks of somebody's own normalization layers: formulas in float64, then the chapters' claims.

``pytest -p normbook.checks.plugin --pyargs normbook.checks --norm package.module``, or ``normbook check``.
"""
