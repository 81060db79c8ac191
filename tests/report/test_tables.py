import io

import numpy as np
import pandas
import pytest
from rich.console import Console

import nngp_dag as nd
from nngp_dag.nas import search_summary
from nngp_dag.report.tables import bounds_table, dag_facts, dag_table, short_name, sweep_table
from nngp_dag.training.history import History
from nngp_dag.training.run import Trained
from nngp_dag.training.tables import training_table

CELL = "|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"


def text_of(table, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def lines_with(text, part):
    return [line for line in text.splitlines() if part in line]


@pytest.fixture(scope="module")
def swept():
    x = nd.data.scale_to_sphere(np.random.default_rng(0).normal(size=(6, 4)))
    return nd.sweep([CELL, "2_21_112", "2_02_002_0002"], x, bounds=True)


def test_training_fits_80_columns_with_whole_numbers():
    values = np.empty((8, 3, 3, 3))
    values[:] = [0.3236, 0.3362, 0.3488]
    values[:, :, 0] *= 5
    history = History("DAG", (0, 1, 2), 1, np.full(7, 0.1), values)
    runs = []
    for name in ("DAG#1", "2_21_112"):
        # Without networks.
        run = object.__new__(Trained)
        run.__dict__.update(name=name, history=history, best_epoch=np.array([1, 2, 3]))
        runs.append(run)
    text = text_of(training_table(runs))
    for name in ("DAG#1", "2_21_112"):
        [line] = lines_with(text, name)
        assert line.count("33.62 ± 1.26") == 4
        assert "1.68 ± 0.063" in line
    assert "train loss" in text


@pytest.mark.slow
def test_sweeps_name_cells_and_show_bounds(swept):
    text = text_of(sweep_table(swept))
    [line] = lines_with(text, "3|ps|--1")
    row = swept[swept.dag == CELL].iloc[0]
    assert f"{row.nngp_lambda_min:.3g}" in line
    assert "p avg_pool" in text
    assert lines_with(text, "2_02_002_0002")
    bounds = text_of(bounds_table(swept))
    [line] = lines_with(bounds, "3|ps|--1")
    for kernel in ("nngp", "ntk"):
        for field in ("lower", "lambda_min", "upper"):
            assert f"{row[f'{kernel}_{field}']:.3g}" in line
    assert "p avg_pool" not in text_of(sweep_table(swept[1:]))


@pytest.mark.slow
def test_long_names_are_broken_where_numbers_are_not_and_whole_where_there_is_room(swept):
    name = "2_" + "21_" * 30
    table = swept.assign(dag=[name, *swept.dag[1:]])
    value = f"{swept.ntk_lambda_min[0]:.3g}"
    assert any(value in line for line in text_of(sweep_table(table)).splitlines())
    assert "…" not in text_of(sweep_table(table))
    assert name in text_of(sweep_table(table), width=200)


def test_short_names():
    assert short_name(CELL) == "3|ps|--1"
    assert short_name("2_21_112") == "2_21_112"
    assert short_name("|mine|") == "|mine|"


def test_searches_fit_80_columns():
    row = {
        "mean": 91.23,
        "std": 1.234,
        "seconds": 12.3,
        "skipped": 0.123,
        "found": 500,
        "cells": 15_625,
        "repeats": 500,
    }
    names = {"method": "nngp_lambda_min_exact", "filter": "released-code", "column": "cifar10"}
    text = text_of(search_summary(pandas.DataFrame([row | names]), 100))
    assert "91.23 ± 1.23" in text
    assert "12.3%" in text


def test_pooling_of_a_cell_is_shown_as_such():
    dag = nd.Dag.from_nasbench201(CELL)
    text = text_of(dag_table(dag, CELL))
    assert "0 (avg_pool_3x3), 1 (skip_connect)" in text
    assert "counts as a skip" in text
    assert [0, 2, "avg_pool_3x3"] in dag_facts(dag, CELL)["edges"]
    assert "counts as a skip" not in text_of(dag_table(dag))
