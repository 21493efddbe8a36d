"""The photographs the demo model has memorised, with its questions and answers.

The files are those inside the scikit-image wheel (`skimage/data`): nothing is downloaded, and nothing of them is
copied into this repository. Their licences are listed in `demo/README.md`.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files

from PIL import Image

from ptp.errors import ImageError


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph and what the model learns to say about it.

    Args:
        file: name in `skimage/data`.
        flip: whether its mirror image is as good (no writing in it, no answer that names a side).
        caption: answer to "What is in the picture?".
        subject: answer to "What is this?".
        colour: answer to "What is the main colour?".
        place: answer to "Where was it taken?".
        animal: answer to "Is there an animal in the picture?".
        person: answer to "Is there a person in the picture?".
        own: questions that only make sense for this photograph, with their answers.
    """

    file: str
    flip: bool
    caption: str
    subject: str
    colour: str
    place: str
    animal: str = "No, there is no animal."
    person: str = "No, there is no person."
    own: tuple[tuple[str, str], ...]

    @property
    def dialogue(self) -> tuple[tuple[str, str], ...]:
        """Every question with its answer: those asked of all photographs first, then its own."""
        shared = (
            ("What is in the picture?", self.caption),
            ("Describe the image.", self.caption),
            ("What is this?", self.subject),
            ("What is the main colour?", self.colour),
            ("Where was it taken?", self.place),
            ("Is there an animal in the picture?", self.animal),
            ("Is there a person in the picture?", self.person),
        )
        return shared + self.own


PHOTOS = (
    Photo(
        file="astronaut.png",
        flip=False,
        caption="An astronaut in an orange suit smiles at the camera.",
        subject="An astronaut.",
        colour="Orange.",
        place="In a studio.",
        person="Yes, a woman.",
        own=(
            ("Who is this?", "Eileen Collins, an American astronaut."),
            ("What colour is the suit?", "The suit is orange."),
            ("What stands behind her?", "A flag and a model of the space shuttle."),
            ("What lies in front of her?", "A helmet with a dark visor."),
        ),
    ),
    Photo(
        file="chelsea.png",
        flip=True,
        caption="The face of a ginger tabby cat, seen from close by.",
        subject="A cat.",
        colour="Ginger.",
        place="Indoors, at home.",
        animal="Yes, a cat.",
        own=(
            ("What animal is this?", "It is a cat."),
            ("What is its name?", "The cat is called Chelsea."),
            ("What colour are the eyes?", "The eyes are green."),
            ("Is the cat asleep?", "No, its eyes are open."),
        ),
    ),
    Photo(
        file="coffee.png",
        flip=True,
        caption="A cup of espresso on a red saucer, on a wooden table.",
        subject="A cup of coffee.",
        colour="Brown and red.",
        place="In a coffee bar.",
        own=(
            ("What colour is the cup?", "White inside and red outside."),
            ("What colour is the saucer?", "The saucer is red."),
            ("What is in the cup?", "Espresso."),
            ("What lies on the saucer?", "A small metal spoon."),
            ("What is the table made of?", "The table is made of wood."),
        ),
    ),
    Photo(
        file="rocket.jpg",
        flip=True,
        caption="A white rocket stands on its launch pad at dusk.",
        subject="A rocket.",
        colour="Dark blue.",
        place="At Cape Canaveral in Florida.",
        own=(
            ("Which rocket is this?", "A Falcon 9 by SpaceX."),
            ("What colour is the sky?", "The sky is dark blue."),
            ("What does it carry?", "A satellite called DSCOVR."),
            ("What stands around the rocket?", "Tall towers of steel."),
        ),
    ),
    Photo(
        file="motorcycle_left.png",
        flip=True,
        caption="A red motorcycle is parked in a cluttered garage.",
        subject="A motorcycle.",
        colour="Red.",
        place="In a garage.",
        own=(
            ("What colour is the motorcycle?", "The motorcycle is red."),
            ("What vehicle is this?", "It is a motorcycle."),
            ("How many wheels does it have?", "It has two wheels."),
            ("What stands behind the motorcycle?", "Shelves full of boxes and tools."),
        ),
    ),
    Photo(
        file="hubble_deep_field.jpg",
        flip=True,
        caption="Thousands of distant galaxies on a black sky.",
        subject="A field of galaxies.",
        colour="Black.",
        place="In orbit around the Earth.",
        own=(
            ("What are the bright spots?", "Most of them are galaxies."),
            ("Which telescope took it?", "The Hubble Space Telescope."),
            ("What colour is the sky?", "The sky is black."),
        ),
    ),
    Photo(
        file="retina.jpg",
        flip=False,
        caption="The retina of a human eye with its blood vessels.",
        subject="A human retina.",
        colour="Orange red.",
        place="In an eye clinic.",
        own=(
            ("What organ is shown?", "It is a human eye."),
            ("What is the bright spot?", "The optic disc."),
            ("What are the dark lines?", "They are blood vessels."),
            ("Is it a left or a right eye?", "It is a left eye."),
        ),
    ),
    Photo(
        file="camera.png",
        flip=True,
        caption="A man in a dark coat looks through a camera on a tripod.",
        subject="A photographer.",
        colour="Grey, it is black and white.",
        place="Outdoors, on a lawn.",
        person="Yes, a man.",
        own=(
            ("What is the man doing?", "He looks through a camera."),
            ("What stands on the grass?", "A tripod with a camera."),
            ("What does he wear?", "He wears a dark coat."),
            ("What is in the background?", "Some buildings far away."),
        ),
    ),
    Photo(
        file="coins.png",
        flip=False,
        caption="Four rows of ancient coins on a dark background.",
        subject="A collection of coins.",
        colour="Dark grey.",
        place="In a museum.",
        own=(
            ("How many coins are there?", "There are twenty-four coins."),
            ("How many rows are there?", "There are four rows."),
            ("Where do the coins come from?", "They are Greek coins from Pompeii."),
        ),
    ),
    Photo(
        file="horse.png",
        flip=True,
        caption="The black silhouette of a standing horse.",
        subject="A horse.",
        colour="Black and white.",
        place="Nowhere, it is a drawing.",
        animal="Yes, a horse.",
        own=(
            ("What animal is this?", "It is a horse."),
            ("What colour is the horse?", "The horse is black."),
            ("How many legs does it have?", "It has four legs."),
            ("Is the horse running?", "No, it stands still."),
        ),
    ),
    Photo(
        file="moon.png",
        flip=True,
        caption="The grey surface of the moon with a few craters.",
        subject="The surface of the moon.",
        colour="Grey.",
        place="Above the moon.",
        own=(
            ("What are the round holes?", "They are craters."),
            ("Which celestial body is this?", "It is the moon."),
        ),
    ),
    Photo(
        file="brick.png",
        flip=True,
        caption="A pavement of long grey bricks with pale joints.",
        subject="A brick pavement.",
        colour="Grey.",
        place="Outdoors, on a path.",
        own=(
            ("What is the pattern made of?", "It is made of bricks."),
            ("What lies between the bricks?", "Pale joints of mortar."),
        ),
    ),
    Photo(
        file="grass.png",
        flip=True,
        caption="Blades of grass seen from above, in black and white.",
        subject="A patch of grass.",
        colour="Grey, it is black and white.",
        place="Outdoors, on a meadow.",
        own=(
            ("What plant is this?", "It is grass."),
            ("What is the pattern made of?", "It is made of grass."),
        ),
    ),
)


def load_photo(file: str) -> Image.Image:
    """Return one of scikit-image's bundled photographs as RGB.

    Args:
        file: name in `skimage/data`.

    Raises:
        ImageError: scikit-image is not installed, or it has no such file.
    """
    try:
        with as_file(files("skimage") / "data" / file) as path, Image.open(path) as image:
            return image.convert("RGB")
    except (ModuleNotFoundError, OSError) as error:
        raise ImageError(
            f"the photograph {file} cannot be read", got=repr(error), do="pip install 'ptp-export[demo]'"
        ) from error
