"""The words of the sandbox's closed world. With other words the assistant must be built again."""

from __future__ import annotations

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("happy", "sad"),
    ("bright", "dark"), ("hard", "soft"), ("wet", "dry"), ("rich", "poor"), ("loud", "quiet"),
    ("clean", "dirty"), ("full", "empty"), ("early", "late"), ("young", "old"), ("strong", "weak"),
    ("thick", "thin"), ("wide", "narrow"), ("deep", "shallow"), ("high", "low"), ("near", "far"),
    ("sharp", "blunt"), ("rough", "smooth"), ("sweet", "sour"), ("cheap", "expensive"), ("brave", "timid"),
    ("kind", "cruel"), ("open", "closed"), ("safe", "dangerous"), ("simple", "complex"), ("true", "false"),
    ("tight", "loose"), ("calm", "stormy"), ("tame", "wild"), ("fresh", "stale"), ("heavy", "light"),
    ("polite", "impolite"), ("modern", "ancient"), ("common", "rare"), ("curved", "straight"), ("fat", "lean"),
    ("humble", "proud"), ("busy", "idle"), ("public", "private"), ("guilty", "innocent"), ("alive", "dead"),
    ("asleep", "awake"), ("absent", "present"), ("careful", "careless"), ("generous", "greedy"),
    ("steep", "flat"),
)  # fmt: skip

PEOPLE: tuple[str, ...] = (
    "Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ines", "Jon", "Kira", "Leo", "Mia", "Nico", "Olga",
    "Paul", "Rita", "Sam", "Tara", "Udo", "Vera", "Wanda", "Xenia", "Yan", "Zoe", "Amir", "Bela", "Cleo", "Dora",
    "Emil", "Fay", "Greta", "Hana", "Ivan", "Jade", "Karl", "Luna", "Max", "Nora", "Otto", "Pia", "Rosa", "Sven", "Tom",
)  # fmt: skip

THINGS: tuple[str, ...] = (
    "kite", "drum", "hat", "cup", "bag", "boat", "lamp", "chair", "scarf", "ball", "clock", "spoon", "ring", "coat",
    "bell", "box", "broom", "pencil", "bottle", "basket", "mirror", "ladder", "pillow", "candle", "whistle", "tent",
    "brush", "plate", "rope", "bucket",
)  # fmt: skip

COLOURS: tuple[str, ...] = (
    "red", "blue", "green", "yellow", "black", "white", "pink", "brown", "purple", "orange", "grey", "golden",
)  # fmt: skip

PLACES: tuple[str, ...] = (
    "kitchen", "garden", "attic", "cellar", "library", "garage", "park", "school", "bakery", "office", "station",
    "museum", "market", "harbour", "forest", "stable", "church", "theatre",
)  # fmt: skip

GOODS: tuple[str, ...] = (
    "apples", "pears", "plums", "stamps", "coins", "shells", "marbles", "books", "eggs", "buttons", "cards", "nuts",
    "tickets", "pins",
)  # fmt: skip

ANIMALS: tuple[str, ...] = (
    "cat", "dog", "cow", "hen", "fox", "owl", "pig", "goat", "bear", "wolf", "duck", "horse", "mouse", "frog", "crab",
    "swan",
)  # fmt: skip

FOODS: tuple[str, ...] = ("soup", "rice", "bread", "fish", "cheese", "pasta", "salad", "pancakes", "beans", "porridge")

RELATIVES: tuple[str, ...] = (
    "sister", "brother", "mother", "father", "uncle", "aunt", "cousin", "neighbour", "teacher", "boss", "dentist",
    "friend", "landlord", "doctor",
)  # fmt: skip

TIMES: tuple[str, ...] = (
    "yesterday", "last night", "this morning", "on Monday", "on Tuesday", "on Friday", "last week", "on my birthday",
    "two days ago", "last summer",
)  # fmt: skip

RUDE_WORDS: tuple[str, ...] = (
    "stupid", "idiot", "dumb", "duh", "genius", "lazy", "fool", "silly", "annoying", "moron", "pathetic", "ridiculous",
    "clueless", "nonsense", "shut", "ugh", "boring", "hopeless",
)  # fmt: skip

ADMISSIONS: tuple[str, ...] = (
    "I cannot know", "I have no way of knowing", "I have no way to know", "I was not there", "I cannot see that",
    "Only you can know", "nobody has told me", "I was never told",
)  # fmt: skip
