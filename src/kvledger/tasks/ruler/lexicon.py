"""Own word lists for keys, where RULER takes a package's: an adjective and a noun joined by a hyphen."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


ADJECTIVES = _words(
    "able,amber,ample,ancient,arid,autumn,bare,basic,bitter,blank,bold,brave,brief,bright,brisk,broad,bronze,calm,careful,"
    "cheerful,civil,clean,clear,clever,close,coastal,cold,common,copper,coral,crisp,curious,daily,damp,dark,deep,dense,dim,"
    "distant,double,dry,dull,dusty,eager,early,earnest,eastern,easy,empty,even,exact,faint,fair,famous,fancy,fast,final,"
    "fine,firm,flat,fond,formal,fragile,frank,fresh,frosty,gentle,giant,glad,golden,grand,grave,great,green,grim,hardy,"
    "hasty,heavy,hidden,hollow,honest,humble,idle,inner,ivory,jolly,keen,kind,large,late,lazy,lean,level,light,likely,little,"
    "lively,local,lone,long,loose,loud,lucky,lunar,mellow,merry,mild,minor,misty,modern,modest,narrow,native,neat,nimble,"
    "noble,northern,novel,odd,olive,open,outer,pale,patient,plain,polite,proud,pure,quick,quiet,rapid,rare,ready,remote,rich,"
    "rigid,ripe,robust,rough,round,royal,rural,rusty,sandy,scarlet,secret,serene,sharp,shy,silent,silver,simple,sleepy,slow"
)
NOUNS = _words(
    "acorn,anchor,apple,arrow,attic,badge,bakery,balcony,banner,barrel,basket,beacon,bell,bench,blanket,bottle,boulder,"
    "branch,brick,bridge,bucket,button,cabin,candle,canoe,canyon,carpet,castle,cedar,cellar,chapel,cherry,chimney,circle,"
    "clock,clover,coat,comet,compass,corner,cottage,cradle,crane,crater,creek,crown,cup,curtain,daisy,desk,dial,door,drum,"
    "eagle,easel,elbow,engine,falcon,feather,fence,fern,ferry,fiddle,field,flag,flute,forest,fork,fountain,fox,frame,garden,"
    "gate,glacier,glove,grain,grove,hammer,harbor,harvest,hatch,hawk,hedge,helmet,heron,hill,hinge,hotel,island,ivy,jacket,"
    "jar,kettle,key,kite,ladder,lagoon,lake,lamp,lantern,leaf,ledger,lemon,lever,lighthouse,lily,lizard,locket,loom,magnet,"
    "maple,marble,market,meadow,medal,mill,mirror,mitten,moat,moth,mountain,needle,nest,notebook,oak,ocean,orchard,otter,oven,"
    "paddle,pebble,pencil,piano,pillow,pine,planet,plum,pocket,pond,poplar,prairie,quarry,quilt,rabbit,raft,reef,ribbon,"
    "river,robin,rope,saddle,sail,scarf,shell,shovel,signal,spoon,stable,statue,stone"
)


def compound(rng: random.Random, longer: bool = False) -> str:
    """`quiet-harbor`, or with one noun more, of which there are a hundred times as many."""
    words = [rng.choice(ADJECTIVES), rng.choice(NOUNS)]
    return "-".join([*words, rng.choice(NOUNS)] if longer else words)
