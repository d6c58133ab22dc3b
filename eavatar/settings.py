"""The whole configuration as one typed tree: the only place where settings are checked.

One class per rule, in stage order; a rule receives its own block and nothing else. There are no
defaults here: every number lives once, with its unit and reason, in ``config/config.yaml``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from eavatar.backends import (
    LANDMARKS,
    MATTING,
    PRIORS,
    RENDERERS,
    UPSAMPLERS,
    Backend,
    PriorBackend,
    Registry,
)
from eavatar.errors import UserError
from eavatar.weights import Net

# libyaml's, where PyYAML was built with it, is ten times as fast: a sheet has hundreds of overlays.
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MIN_FRAME = 32  # least side of the ingested frames, pixels
SEED_LIMIT = 2**63  # of PyTorch's seeds
ALTERNATE = "alternate"  # in held_out_cameras: every second camera by azimuth
MOVED = {  # earlier names
    "seed": "seeds",
    "capture.matte.background_matting_weights": "capture.matte.background_matting_v2.weights",
    "capture.matte.rembg_model": "capture.matte.rembg.model",
    "face.landmarks.detector": "face.landmarks.face_alignment.detector",
    "face.landmarks.image_size": "face.landmarks.face_alignment.image_size",
    "face.landmarks.batch_size": "face.landmarks.face_alignment.batch_size",
    "sdf.frames_per_step": "sdf.timesteps_per_step",
    "sdf.views_per_frame": "sdf.views_per_timestep",
    "sdf.image_memory_gb": "sdf.run.image_memory_gb",
    "sdf.checkpoint_every": "sdf.run.checkpoint_every",
    "splat.image_memory_gb": "splat.run.image_memory_gb",
    "splat.checkpoint_every": "splat.run.checkpoint_every",
    "splat.mixed_precision": "splat.run.mixed_precision",
    "splat.compile": "splat.run.compile",
}


UpsamplerName = Annotated[str, AfterValidator(UPSAMPLERS.check)]


class Settings(BaseModel):
    """Frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackendSettings(Settings):
    """A block that chooses a backend, whose own settings are the sub-block of its name.

    Sub-blocks of other backends may stand beside it. They are checked, but are not kept: a change
    of theirs reruns nothing.
    """

    model_config = ConfigDict(extra="allow")
    registry: ClassVar[Registry[Any]]
    choice: ClassVar[str] = "backend"  # name of the field that chooses

    @property
    def chosen(self) -> Backend:
        """The record of the backend."""
        backend: Backend = self.registry[getattr(self, self.choice)]
        return backend

    @property
    def own(self) -> Any:
        """The settings of the backend alone, of the class that its record names; or None."""
        return (self.model_extra or {}).get(getattr(self, self.choice))

    @model_validator(mode="wrap")
    @classmethod
    def _check_sub_blocks(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if cls.model_config["extra"] == "forbid" or not isinstance(content, Mapping):
            return handler(content)
        chosen = content.get(cls.choice)
        fields: dict[str, Any] = {}
        for name, backend in cls.registry.items():
            if kind := backend.settings:
                fields[name] = (kind, ...) if name == chosen else (kind | None, None)
        closed: dict[str, Any] = {"__base__": cls, "__cls_kwargs__": {"extra": "forbid"}}
        checked = create_model(cls.__name__, **closed, **fields).model_validate(content)
        kept = [*cls.model_fields, *(name for name in fields if name == chosen)]
        return handler({name: getattr(checked, name) for name in kept})


class DemoSettings(Settings):
    """`demo_capture`: the embedded subject."""

    timesteps: int = Field(ge=2, description="timesteps of each training sequence")
    held_out_timesteps: int = Field(ge=2, description="timesteps of FREE")
    image_scale: float = Field(gt=0, le=1, description="stored size / 2200×3208 pixels")


class IngestSettings(Settings):
    """`ingest`: videos to frames."""

    sequences: tuple[str, ...] = Field(description="wildcards of the sequences to use")
    exclude: tuple[str, ...] = Field(description="wildcards of the sequences to leave out")
    held_out: tuple[str, ...] = Field(
        description="wildcards of the sequences kept for testing; none, with held_out_cameras: all "
        "are trained on and, in those cameras, measured"
    )
    cameras: tuple[str, ...] = Field(description="wildcards of the serial numbers to use")
    every: int = Field(ge=1, description="keep every n-th video frame")
    crop_origin: tuple[int, int] = Field(description="x, y of the crop in 2200×3208 pixels")
    crop_size: int = Field(
        gt=0, le=4 * 3208, description="side of the square crop in 2200×3208 pixels"
    )
    image_size: int = Field(ge=MIN_FRAME, description="side of the ingested frames, pixels")
    jpeg_quality: int = Field(ge=1, le=100)
    colour_correction: bool = Field(description="apply the capture's colour calibration")

    def video_lengths(self, last: int) -> tuple[int, ...]:
        """The least and the largest number of frames of a video whose last used one has an index;
        one number where both are the same.
        """
        return (last + 1,) if self.every == 1 else (last + 1, last + self.every)


class MatteSettings(BackendSettings):
    """`matte`: frames to masks."""

    registry = MATTING
    backend: Annotated[str, AfterValidator(MATTING.check)]
    min_coverage: float = Field(
        ge=0, lt=1, description="a mask that covers less of the image has failed"
    )
    max_coverage: float = Field(
        gt=0, le=1, description="a mask that covers more of the image has failed"
    )
    max_jump: float = Field(
        gt=0,
        description="a mask failed if its coverage differs from those around it by this fraction",
    )
    foreground: Literal["plate", "estimated", "none"] = Field(
        description="what frees colours of the set where a mask is soft: the background plate (an "
        "estimate for a camera without one), an estimate from the frames, or nothing"
    )


class LandmarkSettings(BackendSettings):
    """`detect_landmarks`."""

    registry = LANDMARKS
    backend: Annotated[str, AfterValidator(LANDMARKS.check)]


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("the first must be less than the second")
    return value


HeadScale = Annotated[Range, AfterValidator(_in_order)]


class HeadSize(Settings):
    """What `check` is told of `face.fit`."""

    head_scale: HeadScale = Field(
        description="smallest and largest head, metres of a canonical unit; also of `check`"
    )


class Backbones(Settings):
    """What `check` is told of LPIPS: see `required_backbones`."""

    nets: dict[Net, bool]


class FitSettings(HeadSize):
    """`fit_face`: the multi-view morphable-model fit."""

    identity_components: int = Field(ge=1, description="most leading identity components used")
    expression_components: int = Field(ge=1, description="most leading expression components used")
    identity_weight: float = Field(gt=0, description="prior; 1 = the model's normal distribution")
    expression_weight: float = Field(gt=0, description="prior; 1 = the model's normal distribution")
    smoothness_weight: float = Field(gt=0, description="prior on second differences over time")
    landmark_bias: float = Field(
        gt=0, description="deviation of a person's landmarks from any face of the model, dm"
    )
    detection_noise: float = Field(
        gt=0,
        description="deviation of a detection per axis that is expected before it is measured, "
        "fraction of the image width",
    )
    outlier_distance: float = Field(
        gt=0, description="a detection this far off counts a quarter, fraction of the image width"
    )
    iterations: int = Field(ge=1, description="most iterations of the joint refinement")
    min_supported: float = Field(
        ge=0, le=1, description="fraction of the timesteps that enough cameras must bear out"
    )


class RefineSettings(Settings):
    """`refine_face`: the dense, photometric refinement of the landmark fit."""

    enabled: bool = Field(description="otherwise the landmark fit is taken over unchanged")
    image_size: int = Field(ge=64, description="most, side of the images compared, pixels")
    keyframes: int = Field(
        ge=1, description="training timesteps that give identity and texture, kept in memory"
    )
    rounds: int = Field(ge=1, description="times that the texture is estimated")
    colour_noise: float = Field(
        gt=0, description="deviation of a vertex' colour in a view, of a range of 1, as prior"
    )
    colour_outlier: float = Field(gt=0, description="robust loss scale of colours, range 1")
    landmark_noise: float = Field(gt=0, description="deviation of a landmark of the fit, dm")
    landmark_bias: float = Field(
        gt=0, description="deviation that a landmark of the fit has in all timesteps, dm"
    )


class AppearanceSettings(Settings):
    """`measure_appearance`: coefficients of what the tracked eyes, brows and mouth look like."""

    enabled: bool = Field(description="otherwise expression and pose alone drive the avatar")
    components: int = Field(ge=1, le=64, description="coefficients of a timestep, of all regions")
    image_size: int = Field(ge=64, description="most, side of the images looked at, pixels")


class GazeSettings(Settings):
    """`measure_gaze`: where the eyes look."""

    enabled: bool = Field(description="otherwise the eyes of the avatar do not turn by themselves")
    image_size: int = Field(ge=64, description="most, side of the images looked at, pixels")


class GenerateSettings(BackendSettings):
    """`generate_prior`: a complete head mesh in its own frame."""

    registry = PRIORS
    choice = "source"

    @property
    def chosen(self) -> PriorBackend:
        """The record of the source."""
        return PRIORS[self.source]

    source: Annotated[str, AfterValidator(PRIORS.check)]


class PriorRunSettings(Settings):
    """How a generator is run, not what it makes: a change reruns nothing."""

    python: Path | None = Field(
        description="interpreter of the generator's own environment, made from envs/<source>.yaml; "
        "null: snakemake --use-conda makes the environment"
    )


class AlignSettings(Settings):
    """`align_prior`: registration into canonical space."""

    samples: int = Field(ge=1000, description="surface samples of the prior")
    min_confidence: float = Field(
        ge=0, le=1, description="of an alignment that is accepted (`eavatar.prior.confidence`)"
    )
    on_low_confidence: Literal["stop", "without_prior"] = Field(
        description="whether a prior that is not accepted stops the run, or stage I does without"
    )


class SdfLossWeights(Settings):
    """Weights of Eq. 18, and of two terms that it does not list: the distance to the prior, and
    GHA's landmark motion."""

    rgb: float = Field(ge=0)
    silhouette: float = Field(ge=0)
    offset: float = Field(ge=0)
    landmark: float = Field(ge=0)
    laplacian: float = Field(ge=0)
    mesh: float = Field(ge=0)
    prior_distance: float = Field(ge=0)
    deformation: float = Field(ge=0)


class SdfPriorSettings(Settings):
    """What stage I makes of the aligned prior."""

    enabled: bool = Field(
        description="false: no term compares with it, Eq. 17 included, and a sphere is the start"
    )
    start: bool = Field(description="the first surface is the prior's; false: a sphere, as in GHA")
    realign: bool = Field(
        description="align the prior with the present surface over and over, as the paper's ICP"
    )
    face: float = Field(
        ge=0,
        le=1,
        description="weight of the prior's distance on the face; 1 where no camera looks",
    )
    tolerance: float = Field(
        gt=0, description="distance from which the prior gives way to the images, canonical units"
    )


class TorsoSettings(Settings):
    """What stays behind when the head turns: first values, heights below the chin, dm."""

    enabled: bool = Field(description="false: everything moves with the head, as in GHA")
    start: float = Field(description="where the head's weight begins to fall")
    end: float = Field(description="where it has fallen to zero")

    @field_validator("end")
    @classmethod
    def _below_the_start(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("start", value - 1):
            raise ValueError("it must be larger than start")
        return value


class RunSettings(Settings):
    """How a training is carried out, not what it learns: a change restarts and reruns nothing."""

    image_memory_gb: float = Field(ge=0, description="host memory for frames, 2^30 bytes")
    checkpoint_every: int = Field(ge=1, description="steps between resume points")


class PlateauSettings(Settings):
    """A training that ends where frames held back from it no longer improve; not in the paper."""

    enabled: bool = Field(description="false: all steps, and nothing is held back")
    images: int = Field(ge=1, description="training images held back, a timestep each")
    every: int = Field(ge=1, description="steps between looks at them")
    gain: float = Field(gt=0, description="least that a quarter of the steps must bring, dB")


class SplatRunSettings(RunSettings):
    """Of stage II; the networks' precision moves its numbers by rounding only."""

    mixed_precision: bool = Field(description="networks in bfloat16 where the device is CUDA")
    compile: bool = Field(description="compile upsampler and losses where the device is CUDA")
    gpus: int = Field(ge=1, description="over which the views of a step are split, evenly")


class SdfSettings(Settings):
    """`train_sdf`: stage I."""

    steps: int = Field(ge=1, description="optimiser steps")
    timesteps_per_step: int = Field(ge=1)
    views_per_timestep: int = Field(ge=1, description="cameras per timestep of a step")
    image_size: int = Field(ge=16, description="side of the rendered images, pixels")
    renderer: Annotated[str, AfterValidator(RENDERERS.check)]
    grid_resolution: int = Field(ge=8, description="cubic cells along the box's longest side")
    subdivisions: int = Field(ge=0, description="halvings of the cells for the final surface")
    width: int = Field(ge=8, description="units of a hidden layer")
    feature_size: int = Field(ge=1, description="channels of the per-vertex feature")
    colour_size: int = Field(
        ge=3, description="channels that the colour networks give; first 3 RGB"
    )
    near: float = Field(gt=0, description="full expression control below, squared distance, dm²")
    far: float = Field(gt=0, description="full pose control beyond, squared distance, dm²")
    deform_scale: float = Field(gt=0, description="largest displacement per axis, canonical units")
    base_motion: Literal["morphable_model", "none"] = Field(
        description="what the expression moves before the networks learn, in both stages"
    )
    torso: TorsoSettings
    prior: SdfPriorSettings
    learning_rate: float = Field(gt=0, description="of all networks")
    landmark_learning_rate: float = Field(gt=0, description="of the neutral landmarks")
    averaging: float = Field(
        ge=0, lt=1, description="fraction of the steps so far over which the saved head is a mean"
    )
    plateau: PlateauSettings
    weights: SdfLossWeights
    run: RunSettings


class ControlSettings(Settings):
    """Control Gaussians, Eq. 9–13."""

    enabled: bool
    threshold: float = Field(gt=0, description="τ, on the norm of the raw tanh output")
    from_neutral: bool = Field(
        description="output (Eq. 9; of τ_split, too) less that of the neutral expression"
    )
    radius: float = Field(gt=0, description="r of Eq. 11, canonical units")
    sigma: float = Field(gt=0, description="σ of Eq. 13, canonical units")
    neighbours: int = Field(ge=1, description="most neighbours of a Gaussian, the nearest ones")
    mode: Literal["replace", "add", "blend"] = Field(description="reading of Eq. 12")


class SplitSettings(Settings):
    """Displacement-driven splitting (Sec. 3.2)."""

    enabled: bool
    threshold: float = Field(gt=0, description="τ_split, on the norm of the raw tanh output")
    every: int = Field(ge=1, description="steps between splits")
    start: int = Field(ge=0, description="first step that may split")
    stop: int = Field(ge=0, description="last step that may split")
    cap: float = Field(ge=1, description="most Gaussians, as a multiple of the first count")


class DensifySettings(Settings):
    """Splitting where the image is wrong, beside the paper's rule; not in the paper."""

    enabled: bool
    every: int = Field(ge=1, description="steps between its turns")
    start: int = Field(ge=1, description="first step that may split")
    stop: int = Field(ge=0, description="last step that may split")
    fraction: float = Field(gt=0, le=1, description="of the Gaussians, split in a turn")
    budget: float = Field(ge=1, description="most Gaussians, as a multiple of the first count")
    timesteps: int = Field(ge=1, description="whose errors decide, in as many views as in a step")
    min_opacity: float = Field(
        ge=0, lt=1, description="Gaussians below it at all these timesteps are removed"
    )


class SplatLearningRates(Settings):
    """Adam learning rates of stage II."""

    networks: float = Field(gt=0, description="colour, deformation and attribute networks")
    upsampler: float = Field(gt=0)
    positions: float = Field(gt=0)
    features: float = Field(gt=0)
    rotations: float = Field(gt=0)
    scales: float = Field(gt=0)
    opacities: float = Field(gt=0)
    pose_deltas: float = Field(gt=0, description="per-timestep pose corrections")
    final: float = Field(gt=0, le=1, description="factor of all of them at the last step")


class SplatLossWeights(Settings):
    """Weights of Eq. 19, of GHA's coarse term, and of one for where no camera looks."""

    rgb: float = Field(ge=0)
    coarse: float = Field(ge=0)
    lpips: float = Field(ge=0)
    padding: float = Field(
        ge=0, description="what the upsampler adds in the padding of the crop, absolute"
    )


MIN_FEATURE_SIDE = 320  # pixels; fewer lose hair and lashes: three heads, a seed each


class SplatSettings(Settings):
    """`train_splat`: stage II."""

    steps: int = Field(ge=1, description="optimiser steps")
    views_per_step: int = Field(ge=1, description="cameras of the one timestep of a step")
    image_size: int = Field(ge=32, description="side of the final image, pixels")
    boxes: bool = Field(description="train on a box around the person in each camera")
    upsampling: Literal[1, 2, 4] = Field(
        description="final size / size of the splatted features; auto: the largest that leaves "
        f"them {MIN_FEATURE_SIDE} pixels, or 1"
    )
    upsampler: UpsamplerName
    upsampler_width: int = Field(ge=4, description="channels of the upsampler")
    low_pass: float = Field(
        gt=0, le=1, description="added to the variance of every Gaussian, splatted pixels²"
    )
    surface_points: int = Field(ge=100, description="most Gaussians on the surface at the start")
    mouth_points: int = Field(ge=0, description="Gaussians added inside the mouth")
    opacity: float = Field(gt=0, lt=1, description="of all Gaussians at the start")
    drop_unseen: bool = Field(
        description="leave out the Gaussians that are outside every camera's sensor at the start"
    )
    clamp_driving: bool = Field(
        description="give the networks no expression beyond the extremes of the training"
    )
    shading: bool = Field(
        description="let colours follow how the head has turned under lamps that stay"
    )
    width: int = Field(ge=8, description="units of a hidden layer of the attribute networks")
    attribute_scale: float = Field(gt=0, description="factor of the attribute residuals")
    lpips_required: bool = Field(description="stop where LPIPS' weights cannot be had")
    lpips_patch: int = Field(ge=16, description="side of the LPIPS patch, pixels")
    control: ControlSettings
    split: SplitSettings
    densify: DensifySettings
    learning_rates: SplatLearningRates
    averaging: float = Field(
        ge=0, lt=1, description="fraction of the steps so far over which the saved avatar is a mean"
    )
    plateau: PlateauSettings
    weights: SplatLossWeights
    run: SplatRunSettings

    @field_validator("upsampling", mode="before")
    @classmethod
    def _choose_factor(cls, value: object, info: ValidationInfo) -> object:
        size = info.data.get("image_size", 0)
        fitting = [f for f in (4, 2) if size % f == 0 and size // f >= MIN_FEATURE_SIDE]
        return next(iter(fitting), 1) if value == "auto" else value

    @field_validator("upsampling")
    @classmethod
    def _divides_the_image(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("image_size", 0) % value:
            raise ValueError("it must divide image_size")
        return value

    @field_validator("upsampler")
    @classmethod
    def _fits_the_factor(cls, value: str, info: ValidationInfo) -> str:
        factors, factor = UPSAMPLERS[value].factors, info.data.get("upsampling")
        if factors and factor and factor not in factors:
            needed = " or ".join(str(factor) for factor in factors)
            raise ValueError(f"this network needs upsampling to be {needed}")
        return value


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("it must be a power of two")
    return value


PowerOfTwo = Annotated[int, AfterValidator(_power_of_two)]


class FieldRunSettings(RunSettings):
    """Of a radiance field; the networks' precision moves its numbers by rounding only."""

    mixed_precision: bool = Field(description="networks in bfloat16 where the device is CUDA")


class NerfaceDrawing(Settings):
    """What NeRFace needs to draw."""

    image_size: int = Field(ge=16, description="side of the images, pixels")
    width: int = Field(ge=8, description="units of a hidden layer; the colour branch has half")
    latent_size: int = Field(ge=1, description="numbers of a timestep's code")
    samples: int = Field(ge=4, description="of a ray in the first pass, the background among them")
    fine_samples: int = Field(ge=1, description="that the second pass adds")
    half_depth: float = Field(
        gt=0, description="how far before and behind the head's origin rays are sampled, metres"
    )
    skip_empty: bool = Field(
        description="sample rays only where the training's masks leave room for the person"
    )
    view_direction: Literal["published", "corrected"] = Field(
        description="published: what the code passes, z of the direction and the two ends of a ray"
    )


class NerfaceSettings(NerfaceDrawing):
    """`train_nerface`: the baseline NeRFace."""

    steps: int = Field(ge=1, description="optimiser steps")
    images_per_step: int = Field(ge=1, description="each of a timestep and a camera of its own")
    rays_per_image: int = Field(ge=1)
    person_fraction: float = Field(
        ge=0, le=1, description="of the rays, through the box around the person; others anywhere"
    )
    density_noise: float = Field(ge=0, description="deviation of what is added while training")
    latent_weight: float = Field(ge=0, description="of the codes' length in the loss")
    learning_rate: float = Field(gt=0)
    decay_steps: int = Field(ge=1, description="steps in which the learning rate falls to a tenth")
    averaging: float = Field(
        ge=0, lt=1, description="fraction of the steps so far over which the saved model is a mean"
    )
    run: FieldRunSettings


class HavatarDrawing(Settings):
    """What HAvatar needs to draw; sizes are powers of two."""

    image_size: PowerOfTwo = Field(ge=32, description="side of the final images, pixels")
    field_size: PowerOfTwo = Field(ge=16, description="side of the rendered features, pixels")
    condition_size: PowerOfTwo = Field(ge=16, description="side of the mesh's images, pixels")
    plane_size: PowerOfTwo = Field(ge=16, description="side of the planes")
    plane_channels: int = Field(ge=1, description="features of a plane")
    channels: int = Field(ge=4, description="most of a layer of the StyleUNets")
    width: int = Field(ge=4, description="units of a hidden layer of the field")
    feature_size: int = Field(ge=1, description="rendered features beside the colour")
    latent_size: int = Field(ge=1, description="numbers of a timestep's code")
    samples: int = Field(ge=4, description="of a ray in the first pass, the background among them")
    fine_samples: int = Field(
        ge=1, description="that the second pass adds to every second of the first"
    )
    skip_empty: bool = Field(
        description="sample rays only where the training's masks leave room for the person"
    )


class HavatarLossWeights(Settings):
    """Weights of both phases; `image` and `lpips` are of the second, `lpips_patch` of the first."""

    coarse: float = Field(ge=0, description="colours of the first pass, squared")
    fine: float = Field(ge=0, description="colours of the second pass, squared")
    mask: float = Field(ge=0, description="alpha of the second pass, cross-entropy")
    latent: float = Field(ge=0, description="length of the codes")
    blend: float = Field(ge=0, description="differences of neighbouring weights of head and neck")
    lpips_patch: float = Field(ge=0)
    image: float = Field(ge=0, description="colours of the final image, absolute")
    lpips: float = Field(ge=0)


class HavatarSettings(HavatarDrawing):
    """`train_havatar`: the baseline HAvatar."""

    steps: int = Field(ge=1, description="optimiser steps of both phases")
    field_steps: int = Field(ge=0, description="of the first phase, patches without the upsampler")
    images_per_step: int = Field(ge=1, description="each of a timestep and a camera of its own")
    patch: int = Field(ge=16, description="side of the patches of the first phase, pixels")
    density_noise: float = Field(ge=0, description="deviation of what is added while training")
    lpips_required: bool = Field(description="stop where LPIPS' weights cannot be had")
    learning_rate: float = Field(gt=0, description="of all but the upsampler in the first phase")
    later_learning_rate: float = Field(gt=0, description="likewise in the second phase")
    upsampler_learning_rate: float = Field(gt=0)
    decay_steps: int = Field(ge=1, description="steps in which the learning rates fall to a tenth")
    averaging: float = Field(
        ge=0, lt=1, description="fraction of the steps so far over which the saved model is a mean"
    )
    weights: HavatarLossWeights
    run: FieldRunSettings

    @field_validator("patch")
    @classmethod
    def _fits_into_the_image(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("image_size", value):
            raise ValueError("it must be at most image_size")
        return value


class EvaluateSettings(Settings):
    """`evaluate`: per-image metrics."""

    lpips_net: Net = Field(description="backbone of the LPIPS metric")
    lpips_required: bool = Field(description="stop where LPIPS' weights cannot be had")
    pictures: int = Field(ge=1, description="comparison images kept for the report")


class ReenactmentSettings(Settings):
    """`reenact`: an avatar moved by another person."""

    variants: tuple[str, ...] = Field(min_length=1, description="of the avatar, side by side")
    smoothing: float = Field(
        ge=0, lt=1, description="fraction of the pose before in each timestep's; 0 follows at once"
    )
    freeze_gaze: bool = Field(description="the eyes look straight; else where the driver looks")


class CaptureBlock(Settings):
    demo: DemoSettings
    ingest: IngestSettings
    matte: MatteSettings


class FaceBlock(Settings):
    landmarks: LandmarkSettings
    fit: FitSettings
    refine: RefineSettings
    gaze: GazeSettings
    appearance: AppearanceSettings


class PriorBlock(Settings):
    generate: GenerateSettings
    align: AlignSettings
    run: PriorRunSettings


class TablesBlock(Settings):
    evaluate: EvaluateSettings


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each seed must stand once")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_once_each)]
SEED_MARK = "@"  # between a variant's name and a seed that is not the first
UNTRAINED = "images"  # the method that trains nothing
FLOORS = "floors"  # in the place of a variant in metrics.csv


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError("a variant is named by letters, digits and _ . + -, as folders are")
    if name == FLOORS:
        raise ValueError(f"the name '{FLOORS}' is that of the rows of the rule floors")
    return name


class Variant(Settings):
    """A row of the tables: a method, and what it changes of a subject's settings.

    Only here are defaults: what a variant does not name is as the subject has it.
    """

    method: Literal["avatar", "images", "nerface", "havatar"] = Field(
        "avatar", description="what draws the images"
    )
    images: str | None = Field(
        None,
        validate_default=True,
        description="folder of rendered images, {subject} in it stands for the subject's name",
    )
    seeds: Seeds | None = Field(None, description="in place of the setting")
    held_out_cameras: tuple[str, ...] | None = Field(None, description="in place of the setting")
    sdf: dict[str, Any] = Field({}, description="overlay on the block")
    splat: dict[str, Any] = Field({}, description="overlay on the block")
    nerface: dict[str, Any] = Field({}, description="overlay on the block")
    havatar: dict[str, Any] = Field({}, description="overlay on the block")
    tables: dict[str, Any] = Field({}, description="overlay on the block")

    @field_validator("images")
    @classmethod
    def _goes_with_the_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) is (info.data.get("method") == "images"):
            raise ValueError("the method images needs a folder, and no other takes one")
        return value


def _refuse_larger(size: int, ingested: int, whose: str = "") -> None:
    """Raise `ValueError` if a training's images are larger than the frames."""
    if size > ingested:
        raise ValueError(
            f"its image_size {size} {whose}is larger than that of the frames, "
            f"capture.ingest.image_size {ingested}; lower it, or raise that"
        )


Trained = TypeVar("Trained", SdfSettings, SplatSettings)


class Config(Settings):
    """The whole tree, as ``config/config.yaml`` spells it."""

    subjects: Path = Field(description="the sample sheet")
    layouts: Path = Field(description="of the paper's tables and figures")
    reenactments: Path = Field(description="the table of pairs")
    morphable_model: Path = Field(description="used where the sample sheet names none")
    seeds: Seeds = Field(
        description="an avatar is trained with each; the first also is that of all else"
    )
    held_out_cameras: tuple[str, ...] = Field(
        description="that are measured and not trained on: wildcards of serial numbers, or "
        "`alternate`, every second by azimuth; none: all are trained on and measured"
    )
    keep_frames: bool = Field(
        description="of all subjects; false: frames and masks are deleted when the last rule of a "
        "call that reads them is done"
    )
    capture: CaptureBlock
    face: FaceBlock
    prior: PriorBlock
    sdf: SdfSettings
    splat: SplatSettings
    nerface: NerfaceSettings
    havatar: HavatarSettings
    tables: TablesBlock
    reenactment: ReenactmentSettings
    variants: dict[Annotated[str, AfterValidator(_plain_name)], Variant] = Field(
        description="the rows of the tables by name, in their order"
    )

    @property
    def seed(self) -> int:
        """Of all random draws."""
        return self.seeds[0]

    @field_validator("held_out_cameras")
    @classmethod
    def _one_way_to_choose(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if ALTERNATE in value and len(value) > 1:
            raise ValueError(f"{ALTERNATE} must stand alone")
        return value

    @field_validator("capture")
    @classmethod
    def _holds_out_something(cls, value: CaptureBlock, info: ValidationInfo) -> CaptureBlock:
        if not value.ingest.held_out and info.data.get("held_out_cameras") == ():
            raise ValueError("without a sequence in ingest.held_out, held_out_cameras must be set")
        return value

    @field_validator("sdf", "splat")
    @classmethod
    def _is_no_larger_than_the_frames(cls, value: Trained, info: ValidationInfo) -> Trained:
        capture = info.data.get("capture")  # None if it is at fault itself
        if capture:
            _refuse_larger(value.image_size, capture.ingest.image_size)
        return value

    @field_validator("variants")
    @classmethod
    def _have_no_larger_images_than_the_frames(
        cls, value: dict[str, Variant], info: ValidationInfo
    ) -> dict[str, Variant]:
        """Of baselines: their blocks do not count where no variant trains them."""
        for variant in value.values():
            block, capture = info.data.get(variant.method), info.data.get("capture")
            if block and capture:
                size = getattr(variant, variant.method).get("image_size", block.image_size)
                if isinstance(size, int):  # else it is refused with the variant's own tree
                    _refuse_larger(size, capture.ingest.image_size, f"of {variant.method} ")
        return value

    @field_validator("variants")
    @classmethod
    def _has_an_avatar(cls, value: dict[str, Variant]) -> dict[str, Variant]:
        if all(variant.method != "avatar" for variant in value.values()):
            raise ValueError("one of them must have the method avatar, which the report shows")
        return value


Block = TypeVar("Block", bound=Settings)
# What a variant may change, and seeds.
VARIED = tuple(key for key in Variant.model_fields if key in Config.model_fields and key != "seeds")


def select(names: Iterable[str], include: Iterable[str], exclude: Iterable[str] = ()) -> list[str]:
    """The names, in their order, that match a wildcard of ``include`` and none of ``exclude``."""

    def matches(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if matches(name, include) and not matches(name, exclude)]


def check_patterns(
    setting: str, names: Sequence[str], include: Iterable[str], exclude: Sequence[str] = ()
) -> None:
    """Raise `UserError` unless each wildcard of ``include`` chooses a name.

    Args:
        setting: ``sequences`` or ``cameras``, of the block capture.ingest and the sample sheet.
        names: to choose from.
        include: wildcards.
        exclude: wildcards of names that are not chosen.
    """
    source = f"capture.ingest.{setting} (or the sheet's column {setting})"
    for pattern in include:
        matched = select(names, [pattern])
        if not matched:
            near = get_close_matches(pattern, names, 1)
            meant = f"; was {near[0]} meant?" if near else "; correct it."
            raise UserError(
                f"'{pattern}' of {source} matches nothing: there are {', '.join(names)}{meant}"
            )
        if not select(matched, ["*"], exclude):
            raise UserError(
                f"'{pattern}' of {source} matches only {', '.join(matched)}, which "
                f"capture.ingest.exclude {list(exclude)} leaves out; change one of them."
            )


def merge(base: Mapping[str, Any], *overlays: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the overlays on top; nested mappings are merged, all else is replaced."""
    result = dict(base)
    for overlay in overlays:
        for key, value in overlay.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merge(result[key], value) if both else value
    return result


def variant_contents(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The whole tree of each variant and seed: what it names laid over the subject's settings.

    The first seed has the variant's name, another one ``<variant>@<seed>``; images of another code
    have one.

    Args:
        content: a valid tree; the result is not validated.
    """
    contents = {}
    for name, variant in content["variants"].items():
        changed = merge(
            content, {key: variant[key] for key in VARIED if variant.get(key) is not None}
        )
        seeds = variant.get("seeds") or content["seeds"]
        trained = variant.get("method") != UNTRAINED
        for number, seed in enumerate(seeds if trained else seeds[:1]):
            full_name = f"{name}{SEED_MARK}{seed}" if number else name
            contents[full_name] = {**changed, "seeds": [seed]}
    return contents


def variant_of(name: str) -> str:
    """The variant of a name that may have a seed: ``full`` of ``full@2``."""
    return name.partition(SEED_MARK)[0]


def required_backbones(
    trainings: Iterable[SplatSettings | HavatarSettings], tables: Iterable[EvaluateSettings]
) -> dict[Net, bool]:
    """The backbones of LPIPS that trainings and metrics use: whether one of them insists on it."""
    uses: list[tuple[Net, bool]] = [
        ("vgg", block.lpips_required) for block in trainings if block.weights.lpips > 0
    ]
    uses += [
        (net, block.lpips_required and net == block.lpips_net)
        for block in tables
        for net in get_args(Net)  # each has a column
    ]
    return {net: (net, True) in uses for net, _ in sorted(uses)}


def parse_backbones(text: str) -> dict[Net, bool]:
    """What `required_backbones` found, from the command line, as JSON."""
    return validate(Backbones, parse_settings(f'{{"nets": {text}}}'), "--backbones").nets


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; `UserError` if it is missing or is no mapping."""
    if not path.is_file():
        raise UserError(
            f"the configuration file {path} does not exist; name one that does, or run this in the "
            "folder where config/ lies."
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of settings.")
    return content


def validate(kind: type[Block], content: Mapping[str, Any], where: str) -> Block:
    """Check a block; the first fault, unknown settings before others, becomes one sentence."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise UserError(f"{where}: {_sentence(faults[0])}") from error


def find_faults(kind: type[Block], content: Mapping[str, Any]) -> list[str]:
    """All faults of a block, a sentence each."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return [_sentence(fault) for fault in error.errors()]
    return []


def _sentence(fault: ErrorDetails) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden" and (place := _moved(name)):
        return f"the setting '{name}' has moved to '{place}'; change its name."
    if fault["type"] == "extra_forbidden" and fault["loc"][0] == "variants":
        return (
            f"unknown setting '{name}'; a variant has {', '.join(Variant.model_fields)}: the "
            "stages before sdf are shared by all variants."
        )
    if fault["type"] == "extra_forbidden":
        return f"unknown setting '{name}'; check its spelling."
    if fault["type"] == "missing":
        return f"the setting '{name}' is missing."
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = "" if isinstance(fault["input"], Mapping) else f", not {fault['input']!r}"
    return f"setting '{name}': {message}{found}."  # a block would be told with all that it holds


def _moved(name: str) -> str | None:
    """The present name of a setting that had this one, in the whole tree or in its block."""
    if name in MOVED:
        return MOVED[name]
    within = {old.partition(".")[2]: new.partition(".")[2] for old, new in MOVED.items()}
    return within.get(name)


def parse_settings(text: str) -> dict[str, Any]:
    """Settings from the command line: JSON text, or the path of a YAML file that holds them."""
    if not text.lstrip().startswith("{"):
        return read_yaml(Path(text))
    try:
        content: dict[str, Any] = json.loads(text)
        return content
    except json.JSONDecodeError as error:
        raise UserError(f"--settings is not valid JSON: {error}.") from error


def parse_head_scale(text: str) -> tuple[float, float]:
    """`face.fit.head_scale` from the command line."""
    content = parse_settings(f'{{"head_scale": {text}}}')
    return validate(HeadSize, content, "--head-scale").head_scale


def parse_block(kind: type[Block], text: str) -> Block:
    """A block from the command line, as `parse_settings` reads it."""
    where = "--settings" if text.lstrip().startswith("{") else text
    return validate(kind, parse_settings(text), where)


def parse_training(kind: type[Block], text: str, run_text: str | None) -> Block:
    """A training's block from the command line, its sub-block ``run`` there or given apart."""
    if run_text is None:
        return parse_block(kind, text)
    content = merge(parse_settings(text), {"run": parse_settings(run_text)})
    return validate(kind, content, "--settings with --run-settings")


def read_config(*paths: Path) -> Config:
    """The validated tree from a base file and overlays, later ones on top.

    Raises:
        UserError: a file is missing or faulty, or the base is, so that settings are missing.
    """
    where = " + ".join(str(path) for path in paths)
    content = merge({}, *(read_yaml(path) for path in paths))
    if missing := [name for name in Config.model_fields if name not in content]:
        raise UserError(
            f"{where}: the setting '{missing[0]}' is missing; name config/config.yaml, which holds "
            "all, before overlays."
        )
    return validate(Config, content, where)
