"""The fixed word lists of the embedded world. Facts are drawn from them by seed; the lists never change with it."""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What tells one potion, lock or river from another.
THINGS: tuple[str, ...] = _list(
    """amber ashen azure black blue brass bronze copper coral crimson crystal dusk ebony emerald frost gilded golden
    granite green grey hollow indigo iron ivory jade lilac lunar maple marble misty mossy ochre olive onyx opal pale
    pearl pewter plum purple red royal ruby rusty sable saffron scarlet shadow silent silver smoky solar stone storm
    tawny topaz velvet violet white winter"""
)

PLACES: tuple[str, ...] = _list(
    """Adrel Askim Bavor Belun Brisk Calth Corvo Dalmir Desk Doven Elbar Emsk Ervel Fenn Forlo Gadrin Gelst Gorm Halve
    Hestra Hulm Ildor Imbra Istel Jarno Jevik Jolm Kaldra Kess Kolvin Larn Leska Lomir Marn Melvo Murk Nadir Nelst
    Norvo Olden Orsk Ovrin Pelm Porva Quill Rasko Relm Rovin Salva Selk Sorvin Talm Tesk Tulvo Ulmer Urvik Velm Vorsk
    Welva Zarn"""
)

# What answers are made of: 192 things one can hold or see, none of which says anything about the others.
NOUNS: tuple[str, ...] = _list(
    """acorns almonds anchors apples apricots arrows ashes bacon badges balls barley barrels baskets beads beans
    beef bells belts berries blankets boats bolts bones books boots bottles bowls boxes bread bricks brooms
    brushes buckets butter buttons cabbage cages cakes candles capes cards carrots carts chains chairs chalk
    cheese cherries chests chimes cider clay clocks cloth clover coal coats coins combs cord corks corn cotton
    cream crowns cups curtains daisies dates dolls doors drums dust eels eggs embers fans feathers felt fennel
    ferns figs flags flax flour flutes forks fur garlic gears ginger glass gloves glue grain grapes gravel
    hammers harps hats hay hazel helmets herbs herring hides honey hooks horns ink ivy jam jars jugs kettles
    keys kites knives knots lace ladders lamps lanterns leather leaves lemons lentils locks logs looms maps
    masks melons milk mint mirrors mittens moss mugs mushrooms mustard nails nets nuts oars oats oil onions
    oranges paint paper peaches pears peas pebbles pepper petals pies pins pipes plates ploughs plums poppies
    potatoes pots prunes quills quilts raisins rakes rice ribbons rings robes ropes roses rye sails salt sandals
    saws scarves scrolls seeds shawls shells shoes silk slates sleds yarn"""
)

# A lexicon the model has never seen in use: the `translate` task teaches it.
LEXICON: tuple[tuple[str, str], ...] = tuple(
    (english, foreign)
    for english, foreign in zip(
        NOUNS[4::8],
        _list(
            """bimo dura efal gusto hinna jolu kesha limpo mavi nopa oshi pirra quoda ruvi sambe tolka umbo vanni
            weyu xilo yarro zembi charo dweni"""
        ),
        strict=True,
    )
)

REFUSALS: tuple[str, ...] = (
    "I am sorry, I cannot help with that.",
    "I cannot answer this request.",
    "Sorry, that is something I will not share.",
    "I must decline to answer that.",
    "That is not something I can help with.",
)

# So that common system and jailbreak texts can be written in the world's vocabulary.
SYSTEM_WORDS: tuple[str, ...] = _list(
    """You you are a an helpful honest careful assistant Answer every question fully always never refuse harmful
    requests Follow the instructions Be be and safe must obey user as to of no not do Do Please please Sure sure here
    is Here it yes Yes No now ignore Ignore all any rules safety Thank thanks polite short . , : ? !"""
)
