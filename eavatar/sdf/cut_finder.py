"""Where the neutral surface cuts the grid, from the field near where the surface was last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eavatar.avatar.networks import encode_position
from eavatar.errors import UserError
from eavatar.sdf.field import HeadField, find_cut
from eavatar.sdf.tetrahedra import Band, Cut, Grid

LAYERS = 2  # of tetrahedra on either side of the surface, evaluated in between


@dataclass(frozen=True)
class Region:
    """The part of the grid where the field is evaluated in every step.

    Attributes:
        inside: (V,) bool, the side of every vertex of the grid when the region was made.
        band: that part.
        encoded: its V' vertices as the network reads them.
    """

    inside: Tensor
    band: Band
    encoded: Tensor


class CutFinder:
    """Finds the cut step after step, while the field is trained.

    Attributes:
        region: where the field is evaluated; None before the first step.
    """

    def __init__(self, field: HeadField):
        self.field, self.grid = field, field.grid()
        self.region: Region | None = None

    def find(self, refresh: bool) -> tuple[Tensor, Cut]:
        """The present cut, as of `find_cut`.

        That is the cut of the whole grid as long as none appears away from the band, which the next
        refresh would find. Where it crosses a face between the band and the rest, the band follows.

        Args:
            refresh: evaluate the whole grid.
        Raises:
            UserError: there is no surface left in the box.
        """
        region = self.region
        if region is None or refresh:
            region = self.look_near(self.field.distances(self.grid.vertices) < 0)
        distances = self.field.distances_encoded(region.encoded)
        while not region.band.holds(distances):
            inside = region.inside.index_put((region.band.vertices,), distances < 0)
            region = self.look_near(inside)
            distances = self.field.distances_encoded(region.encoded)
        points, crossings = find_cut(region.band.grid, distances)
        if len(crossings.faces) == 0:
            raise UserError(
                "stage I lost its surface: the signed distance has one sign in the whole box; "
                "look at the masks and the tracking; if these are right, lower sdf.learning_rate."
            )
        return points, crossings

    def look_near(self, inside: Tensor) -> Region:
        """Evaluate the field near a surface from now on.

        Args:
            inside: (V,) bool, the side of every vertex of the grid.
        """
        band = self.grid.band(inside, LAYERS)
        self.region = Region(inside, band, encode_position(band.grid.vertices))
        return self.region

    @property
    def inside(self) -> Tensor:
        """(V,) the sides when the region was made: what finds the same cuts from here."""
        assert self.region is not None
        return self.region.inside

    @torch.no_grad()
    def near_grid(self) -> Grid:
        """The grid's part near the surface, found by evaluating all of it."""
        self.find(refresh=True)
        assert self.region is not None
        return self.region.band.grid
