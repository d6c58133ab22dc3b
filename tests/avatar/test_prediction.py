"""Appearance from an expression alone, and the avatar that asks for it."""

import pytest
import torch

from eavatar.avatar.files import read_avatar, write_avatar
from eavatar.avatar.prediction import predict, regress
from eavatar.errors import UserError
from eavatar.settings import Settings
from tests.scenes.small_avatar import EXPRESSIONS, make_avatar
from tests.scenes.small_results import make_camera, make_tracking

APPEARANCES = 2


def test_prediction_is_the_training_s_linear_relation() -> None:
    torch.manual_seed(0)
    expression, slopes = torch.randn(3000, 4), torch.randn(2, 4)
    appearance = expression @ slopes.T + torch.tensor([0.5, -1.0])
    matrix = regress(expression, appearance)
    told = torch.stack([predict(matrix, each) for each in expression[:50]])
    # Against 3000 timesteps the ridge of 30 takes 1 % off the slopes.
    assert (told - appearance[:50]).abs().max() < 0.02 * appearance.std() + 0.05


def test_few_timesteps_are_not_followed_to_the_letter() -> None:
    torch.manual_seed(0)
    expression, appearance = torch.randn(20, 30), torch.randn(20, 1)
    matrix = regress(expression, appearance)
    told = torch.stack([predict(matrix, each) for each in expression])
    assert told.std() < 0.8 * appearance.std()
    assert matrix.norm() < 1


def test_without_coefficients_there_is_nothing_to_predict() -> None:
    matrix = regress(torch.randn(5, 3), torch.zeros(5, 0))
    assert matrix.shape == (0, 4) and predict(matrix, torch.randn(3)).shape == (0,)


def test_an_avatar_predicts_what_was_not_measured() -> None:
    avatar = make_avatar(appearances=APPEARANCES)
    avatar.appearance_by_expression.normal_()
    step, camera = make_tracking()[0], make_camera(0)
    expression = torch.from_numpy(step.expression)
    told = predict(avatar.appearance_by_expression, expression).numpy()
    alone = avatar.render(step, camera)
    assert torch.equal(alone, avatar.render(replace_appearance(step, told), camera))
    assert not torch.equal(alone, avatar.render(replace_appearance(step, told + 1), camera))
    edited = replace_appearance(step, told + 1).with_expression(step.expression)
    assert torch.equal(alone, avatar.render(edited, camera))


def test_the_prediction_is_saved_with_the_avatar(tmp_path) -> None:
    avatar = make_avatar(appearances=APPEARANCES)
    avatar.appearance_by_expression.normal_()
    write_avatar(tmp_path, avatar, Settings())
    again = read_avatar(tmp_path)
    assert again.settings.head.appearance_size == APPEARANCES
    assert torch.equal(again.appearance_by_expression, avatar.appearance_by_expression)


def test_another_number_of_coefficients_is_refused() -> None:
    avatar = make_avatar(appearances=APPEARANCES)
    step = make_tracking()[0]
    wrong = replace_appearance(step, step.expression[:1])
    with pytest.raises(UserError, match=f"has {EXPRESSIONS} coefficients and 2 of its appearance"):
        avatar.render(wrong, make_camera(0))


def replace_appearance(step, appearance):
    return type(step)(step.expression, step.rotation, step.translation, appearance)
