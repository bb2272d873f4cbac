"""The published figures beside the counted ones."""

import pytest
import timm

from t2t_vit.insight.complexity import describe
from t2t_vit.insight.published import COMPARED, NOT_PUBLISHED, Published


def test_every_name_is_known():
    for name, published in COMPARED.items():
        if published.library == "timm":
            assert timm.is_model(name), name
            assert "." not in name or name in timm.list_pretrained(), name
        else:
            assert not timm.is_model(name), name


def test_titles_are_told_apart():
    titles = [published.title for published in COMPARED.values()]
    assert len(set(titles)) == len(titles)


def test_who_published_is_told_where_figures_are():
    for name, published in COMPARED.items():
        assert bool(published.source) == (published.params_m is not None or published.gmacs is not None), name


def test_a_figure_within_two_percent_is_the_same():
    assert Published(params_m=25.0, gmacs=4.10).differs_from(25_490_000, 4_030_000_000) == ""
    assert NOT_PUBLISHED.differs_from(25_490_000, 4_030_000_000) == ""


def test_a_difference_is_told_with_its_reason():
    figures = Published(params_m=25.0, gmacs=4.3, why="the heads differ")
    assert figures.differs_from(25_000_000, 4_000_000_000) == "4 GMACs counted, 4.3 published: the heads differ."
    assert Published(params_m=2.0).differs_from(3_000_000, 1) == (
        "3 M parameters counted, 2.0 published: counted otherwise by the source."
    )


def test_what_is_only_rounded_is_told_as_that():
    figures = Published(gmacs=0.2, why="never told")
    assert (
        figures.differs_from(1, 217_000_000) == "0.217 GMACs counted, 0.2 published: the published figure is rounded."
    )


@pytest.mark.slow
def test_every_figure_is_the_published_one_or_has_its_reason():
    """Above 2 % a row says why; and no row has a reason for nothing."""
    for name, published in COMPARED.items():
        row = describe(name)
        figures = ((row.parameters / 1e6, published.params_m), (row.macs / 1e9, published.gmacs))
        apart = [figure for counted, figure in figures if figure and abs(counted - figure) > 0.02 * figure]
        assert row.differs.count(" published: ") == len(apart), name
        assert all(f"{figure} published: " in row.differs for figure in apart), name
        is_only_rounded = row.differs.count("rounded") == len(apart)
        assert bool(published.why) != is_only_rounded, name
