import numpy as np
import torch
import torch.nn.functional as F

from t2t_vit.models.positions import resample_positions, sinusoid_table


def test_the_table_is_attention_is_all_you_need_s():
    table = sinusoid_table(5, 6)[0].numpy()
    assert table.shape == (5, 6)
    for position in range(5):
        for i in range(3):
            angle = position / np.power(10000, 2 * i / 6)
            assert table[position, 2 * i] == np.float32(np.sin(angle))
            assert table[position, 2 * i + 1] == np.float32(np.cos(angle))


def test_resampling_keeps_the_class_token_and_interpolates_the_grid():
    table = sinusoid_table(1 + 6, 8)
    resampled = resample_positions(table, (2, 3), (4, 5))
    assert resampled.shape == (1, 21, 8)
    torch.testing.assert_close(resampled[:, 0], table[:, 0], rtol=0, atol=0)
    as_map = table[:, 1:].reshape(1, 2, 3, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(as_map, size=(4, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resampled[:, 1:], expected.flatten(2).transpose(1, 2))


def test_resampling_to_the_same_grid_changes_nothing():
    table = sinusoid_table(1 + 6, 8)
    assert resample_positions(table, (2, 3), (2, 3)) is table


def test_a_grid_of_the_same_count_but_another_shape_is_resampled():
    table = sinusoid_table(1 + 6, 8)
    assert not torch.equal(resample_positions(table, (2, 3), (3, 2)), table)
