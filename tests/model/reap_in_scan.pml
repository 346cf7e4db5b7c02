/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   A reap inside the evictor's scan: the coordinator takes back what a killed worker held between the parts
   of its scan and between its batches, and goes on with the same scan. Announce counters over a chain (child
   and grandchild announced before the publish), kills, recycling and new lives of the slot, together.

   Rules (DESIGN.md): 5 announce counter, 6 publish, 10 order of a round, 11 closure, 12 generation, 14 reap;
   3 (nobody hangs a page below another worker's Pending page) is what the argument stands on.
   Claims: a page held under a verified lease, or above one, is never retired (C4); a retired page has no
   Live, Condemned or Pending child, be its owner dead or alive (C2); a page becomes Live below a Live or
   Condemned page only; a page of a living worker is not freed under it. At quiescence every page is Free or
   Live, every Live page's parent is Live, no lease is left.

   Why it holds: a reap frees only Writing and Pending pages, none of which the scan can have for a
   candidate; to the evictor it is what an abort by a living worker is. A child that the scan counted and that
   was reaped keeps its parent out of this scan. A page taken again raises its new parent's counter after the
   first look at it. A dead announcer that had not raised it yet had its lease on the parent, and leaves a
   Pending child below it: the child is freed first, then the lease is cleared, and nobody can have used that
   child as a parent.

   The scan is page by page, word and parent apart; a batch is one or two pages, one access per step. A death
   is one step with the start of its reap: until then the dead differs in nothing from one that is slow, and
   the claims are made for it as for that one.
   Over-approximations: no index, begin tries ANY page, after a lost lease too (covers every moment of the
   index entry, stale entries, runs, hints, falling back); no tokens, so every child of a parent is another
   key; no ranking, a batch is ANY one or two leaves of the scan; the reap frees in any order.
   Simplifications: word and parent are one step in begin (lease_evict.pml has rule 1); taking pages and their
   parent handles is one step; of the workers only worker 0 is killed, the coordinator never (after its death
   the next one reaps before it scans anew). A counter is one bit, "raised since the evictor's first look",
   which is all that is ever asked of it. With -DTSO=1 the stores of the workers go through x86-TSO store
   buffers, else memory is sequentially consistent.

   word = state(3) | owner(1)<<3 | gen<<4      handle = page(3) | gen<<3, page 7 = root or none

   Switches: each default is the protocol; another value is a mutant unless it says "variant". */

#ifndef NP               /* pages */
#define NP 3
#endif
#ifndef NW               /* workers */
#define NW 2
#endif
#ifndef OPS0             /* requests of each life of worker 0 */
#define OPS0 1
#endif
#ifndef OPS1             /* requests of worker 1 */
#define OPS1 1
#endif
#ifndef ROUNDS           /* scans */
#define ROUNDS 1
#endif
#ifndef BATCHES          /* batches of one scan */
#define BATCHES 2
#endif
#ifndef KILLS            /* how often worker 0 may be killed */
#define KILLS 1
#endif
#ifndef INIT             /* Live at the start: 1 page 0; 2 page 0 and its child 1; 3 page 1 and its child 0;
                            4 page 0 and its children 1, 2; 5 page 2 and its children 0, 1; 6 pages 0 and 1, both below the root */
#define INIT 2
#endif
#ifndef NEW0             /* pages that one request may announce, as a chain */
#define NEW0 2
#endif
#ifndef NEW1
#define NEW1 2
#endif
#ifndef ABORT            /* variant 1: a request may give up its Pending pages */
#define ABORT 0
#endif
#ifndef APART            /* variant 1: begin's look at the word and the lease store are two steps. (As one step, what is left
                            out is a lease of an older life, which protects nothing and which the second look gives up.) */
#define APART 0
#endif
#ifndef TSO              /* variant 1: store buffers */
#define TSO 0
#endif
#ifndef REAP             /* 1 between the parts of a scan and between batches; variant 0: only between scans (as it was);
                            variant 2: by another thread, at any moment */
#define REAP 1
#endif
#ifndef LEASE_FIRST      /* rule 14: 1 = the leases of the dead go before its pages; a variant (harmless) with REAP=1, where no
                            batch can run between the two, a mutant with REAP=2 */
#define LEASE_FIRST 0
#endif
#ifndef REAP_PAGES       /* rule 14: the pages of the dead are freed */
#define REAP_PAGES 1
#endif
#ifndef REAP_LEASES      /* rule 14: the leases of the dead are cleared */
#define REAP_LEASES 1
#endif
#ifndef SLOT_FIRST       /* rule 14: 1 = the slot is free before the pages are */
#define SLOT_FIRST 0
#endif
#ifndef DECREMENT        /* 1 = a reaped page is taken off its parent's child count, the parent that the scan noted for
                            its index; 2 = the parent that it has; variant 3: only if the scan counted this very life of it */
#define DECREMENT 0
#endif
#ifndef REFRESH          /* 1 = after a reap the counters are read for the first time again, the words are not */
#define REFRESH 0
#endif
#ifndef COUNT_FIRST      /* rule 10: counters read before the scan (0: after it) */
#define COUNT_FIRST 1
#endif
#ifndef RECOUNT          /* rule 10: counters read again, 1 after the slots; 2 before them; 0 never */
#define RECOUNT 1
#endif
#ifndef PENDING_COUNTS   /* rule 10: a Pending child counts in the scan */
#define PENDING_COUNTS 1
#endif
#ifndef CLOSURE          /* rule 11: a child of a batch that was kept keeps its parent, in this batch and the next */
#define CLOSURE 1
#endif
#ifndef GEN_GROWS        /* rule 12: Free with the next generation */
#define GEN_GROWS 1
#endif
#ifndef BUMP             /* rule 5: counter raised 1 after Pending; 2 before it; 0 never */
#define BUMP 1
#endif
#ifndef BUMP_CHAIN       /* rule 5: the counter of a parent that is one's own Pending page is raised too */
#define BUMP_CHAIN 1
#endif
#ifndef MOVE             /* rule 6: the lease moves to the deepest, 1 while Pending; 2 after Live; 3 to the first only */
#define MOVE 1
#endif
#ifndef PARENTS_FIRST    /* rule 6: parents become Live first */
#define PARENTS_FIRST 1
#endif
#ifndef PARENT_ANY       /* rule 3: 1 = a lease on another worker's Pending page is taken for good */
#define PARENT_ANY 0
#endif

#define FREE 0
#define WRITING 1
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define NONE 7
#define ST(w) ((w)&7)
#define OW(w) (((w)>>3)&1)
#define GN(w) ((w)>>4)
#define MK(s,o,g) ((s)|((o)<<3)|((g)<<4))
#define PG(h) ((h)&7)
#define HG(h) ((h)>>3)
#define H(p,g) ((p)|((g)<<3))

byte wd[NP]; byte par[NP];
byte slot[NW];
byte armed, raised;           /* masks of counters: the evictor has had its first look; raised since then */
bool alive[2]; bool ended[2];
byte hold[2];                 /* ghost: the deepest page that the worker believes it holds */
byte kills = KILLS;           /* left; a change ends worker 0's present life */
/* names of the claims, for the report; always 0 */
hidden byte claim_held_page, claim_child_of_retired, claim_parent, claim_own_page, claim_page_lost, claim_lease_left;

#define LIVE_OR_COND(x) (ST(x)==LIVE || ST(x)==COND)
#define CANON(x) (LIVE_OR_COND(x) || ST(x)==PENDING)
#define PARENT_OK(p) (PG(par[p])==NONE || (GN(wd[PG(par[p])])==HG(par[p]) && LIVE_OR_COND(wd[PG(par[p])])))
#define UP(h) (PG(h)==NONE -> NONE : par[PG(h)])
#define HOLDS(v,p) (PG(hold[v])==p || PG(UP(hold[v]))==p || PG(UP(UP(hold[v])))==p)
#define HELD(p) (HOLDS(0,p) || HOLDS(1,p))

/* ---- stores of the workers: to a word, or (page NONE) to the own slot */
#if TSO
chan sb[NW] = [3] of { byte, byte };
#define STORE(a,v) nfull(sb[w]) -> sb[w]!a,v
#define DRAINED(w) (empty(sb[w]))
proctype Drain(byte w) { byte a, v;
endl: do :: atomic { sb[w]?a,v ->
     if :: a==NONE -> slot[w] = v
        :: else -> wd[a] = v; assert(ST(v)!=LIVE || PARENT_OK(a) || claim_parent) fi; a = 0; v = 0 } od }
#else
#define STORE(a,v) if :: a==NONE -> slot[w] = v \
  :: else -> wd[a] = v; assert(ST(v)!=LIVE || PARENT_OK(a) || claim_parent) fi
#define DRAINED(w) true
#endif

inline raise(hh,count) { atomic { DRAINED(w) ->   /* a locked addition drains the buffer */
  if :: count && PG(hh)!=NONE && (armed>>PG(hh))&1 -> raised = raised | (1<<PG(hh)) :: else fi } }
#define CANDIDATE(p) (LIVE_OR_COND(wd[p]) || (PARENT_ANY && ST(wd[p])==PENDING))
#if APART
#define PICK(p) atomic { CANDIDATE(p) -> h = H(p,GN(wd[p])); up = par[p] }
#else      /* the lease store is seq_cst, an exchange */
#define PICK(p) atomic { CANDIDATE(p) && DRAINED(w) -> h = H(p,GN(wd[p])); up = par[p]; slot[w] = h }
#endif
#define TAKE(p,f,below) ST(wd[p])==FREE -> f = H(p,GN(wd[p])); wd[p] = MK(WRITING,w,GN(wd[p])); par[p] = below
inline take(f,below) {
  if :: TAKE(0,f,below)
     :: TAKE(1,f,below)
#if NP>2
     :: TAKE(2,f,below)
#endif
#if NP>3
     :: TAKE(3,f,below)
#endif
     :: true fi }
inline announce(f,below,count) {
#if BUMP==2
  raise(below,count);
#endif
  atomic { if :: f==NONE -> goto announced :: else fi; STORE(PG(f), MK(PENDING,w,HG(f))) };
#if BUMP==1
  raise(below,count)
#endif
}
#define MY_PENDING(f) (TSO || wd[PG(f)]==MK(PENDING,w,HG(f)))
inline make_live(f) { atomic {
  if :: f!=NONE -> assert(MY_PENDING(f) || claim_own_page); STORE(PG(f), MK(LIVE,0,HG(f))) :: else fi;
  if :: PARENTS_FIRST && MOVE==1 && f1==NONE -> goto rel :: else fi } }
inline give_up(f) { atomic { DRAINED(w) ->
  if :: f!=NONE -> assert(MY_PENDING(f) || claim_own_page); wd[PG(f)] = MK(FREE,0,HG(f)+GEN_GROWS) :: else fi } }

/* from here on the worker believes that it holds h and what is above it */
#define GOT \
  assert((par[PG(h)]==up && PARENT_OK(PG(h)) && (PG(up)==NONE || PARENT_OK(PG(up)))) || claim_held_page); \
  hold[w] = h; up = NONE; x = 0; goto have

/* one life after another of slot w; h: leased, f0 below it, f1 below f0 */
proctype Worker(byte w) { byte ops, h = NONE, up = NONE, f0 = NONE, f1 = NONE, x, life = KILLS;
  do :: {
  do
  :: atomic { ops < (w==0 -> OPS0 : OPS1) -> ops++ };
     /* ---- begin and lease (rules 1, 2) */
pick: if
     :: PICK(0)
     :: PICK(1)
#if NP>2
     :: PICK(2)
#endif
#if NP>3
     :: PICK(3)
#endif
     :: atomic { h = NONE; STORE(NONE, NONE); goto have }
     fi;
#if APART
     atomic { DRAINED(w) -> slot[w] = h };
#endif
     atomic { x = wd[PG(h)];
       if :: x == MK(LIVE,0,HG(h)) -> GOT
          :: x == MK(COND,0,HG(h))
          :: PARENT_ANY && ST(x)==PENDING && GN(x)==HG(h) -> x = 0; up = NONE; goto have
          :: else -> h = NONE; up = NONE; x = 0; goto pick fi };
     atomic {
       if :: wd[PG(h)] == x -> wd[PG(h)] = MK(LIVE,0,HG(h)); assert(PARENT_OK(PG(h)) || claim_parent); GOT
          :: wd[PG(h)] == MK(LIVE,0,HG(h)) -> GOT
          :: else -> h = NONE; up = NONE; x = 0; goto pick fi };
have: /* ---- take, announce (rules 3, 4, 5) */
     atomic { DRAINED(w) ->
       if :: (w==0 -> NEW0 : NEW1) > 0 -> take(f0,h) :: else fi;
       if :: (w==0 -> NEW0 : NEW1) > 1 && f0!=NONE -> take(f1,f0) :: else fi;
       if :: f0==NONE -> goto rel :: else fi };
     announce(f0,h,true);
     announce(f1,f0,BUMP_CHAIN);
announced:
#if ABORT
     /* ---- abort (rule 8): the lease still stands on the Live parent */
     if :: give_up(f1); give_up(f0); goto rel
        :: true fi;
#endif
     /* ---- publish (rule 6) */
#if MOVE!=2
     atomic { if :: f1!=NONE && MOVE!=3 -> STORE(NONE, f1); hold[w] = f1
                 :: else -> STORE(NONE, f0); hold[w] = f0 fi };
#endif
#if PARENTS_FIRST
     make_live(f0); make_live(f1);
#else
     make_live(f1); make_live(f0);
#endif
#if MOVE==2
     atomic { if :: f1!=NONE -> STORE(NONE, f1); hold[w] = f1 :: else -> STORE(NONE, f0); hold[w] = f0 fi };
#elif MOVE==3
     atomic { if :: f1!=NONE -> hold[w] = f1 :: else fi };
#endif
rel: atomic { hold[w] = NONE; STORE(NONE, NONE); h = NONE; f0 = NONE; f1 = NONE }
     /* a new life may ask for nothing */
  :: atomic { (ops == (w==0 -> OPS0 : OPS1) || (ops == 0 && life < KILLS)) && DRAINED(w) -> ended[w] = true; ops = 0; goto over }
  od
  } unless { atomic { w==0 && life!=kills -> life = kills; ops = 0; h = NONE; up = NONE; f0 = NONE; f1 = NONE; x = 0 } };
  (alive[w])
  od;
over: skip
}

/* ---- rule 14: pages, leases, slot. The kill is its first step. */
#define MAY_DIE (kills>0 && !ended[0] && DRAINED(0))
#define DEADS(p) (OW(wd[p])==0 && (ST(wd[p])==WRITING || ST(wd[p])==PENDING))
#if DECREMENT
#define FEWER(b) if :: ranked && PG(b)!=NONE && kids[PG(b)]>0 && GN(words[PG(b)])==HG(b) -> kids[PG(b)]-- :: else fi
#if DECREMENT==1
#define TAKE_OFF(p) FEWER(parents[p])
#elif DECREMENT==2
#define TAKE_OFF(p) FEWER(par[p])
#else
#define TAKE_OFF(p) if :: words[p]==wd[p] && ST(words[p])==PENDING -> FEWER(parents[p]) :: else fi
#endif
#else
#define TAKE_OFF(p) skip
#endif
#define GIVE_BACK(p) atomic { DEADS(p) -> TAKE_OFF(p); wd[p] = MK(FREE,0,GN(wd[p])+GEN_GROWS) }
inline reap_pages() {
#if REAP_PAGES
  do :: GIVE_BACK(0) :: GIVE_BACK(1)
#if NP>2
     :: GIVE_BACK(2)
#endif
#if NP>3
     :: GIVE_BACK(3)
#endif
     :: else -> break od
#else
  skip
#endif
}
inline reap() {
  atomic { MAY_DIE -> kills--; alive[0] = false; hold[0] = NONE };
#if SLOT_FIRST
  alive[0] = true;
#endif
#if LEASE_FIRST
  slot[0] = NONE; reap_pages();
#else
  reap_pages();
#endif
#if REAP_LEASES
  atomic { slot[0] = NONE; alive[0] = true; if :: REFRESH -> raised = 0 :: else fi }    /* the slot is free: a new life of it may start */
#else
  alive[0] = true
#endif
}
#if REAP==1
#define REAP_HERE reap()
#else
#define REAP_HERE false
#endif
#if REAP==2
proctype Reaper() { end: do :: reap() od }
#endif

/* ---- the evictor. b0 is chosen, condemned and retired before b1 */
#define RESC(bb,kk) if :: wd[PG(bb)]==MK(COND,0,HG(bb)) -> wd[PG(bb)] = MK(LIVE,0,HG(bb)) :: else fi; kk = true
inline read_counters() {
  do :: atomic { i < NP -> armed = armed | (1<<i); i++ }
     :: REAP_HERE
     :: atomic { i == NP -> i = 0; break } od }
inline scan_pages() {
  do :: atomic { i < NP -> words[i] = wd[i] };
        atomic { if :: LIVE_OR_COND(words[i]) || (PENDING_COUNTS && ST(words[i])==PENDING) -> parents[i] = par[i]
                    :: else -> parents[i] = NONE fi; i++ }
     :: REAP_HERE
     :: atomic { i == NP -> i = 0; break } od }
/* forgets what the scan knows of pages that cannot be chosen any more, so that states merge */
#if DECREMENT
#define FORGET i = 0
#else
#define FORGET i = 0; \
  do :: i < NP -> if :: ST(words[i])!=LIVE || (chosen>>i)&1 -> \
          words[i] = 0; parents[i] = NONE; kids[i] = 0; armed = armed & (255-(1<<i)); raised = raised & armed \
        :: else fi; i++ \
     :: else -> break od; i = 0
#endif
inline rank() { atomic { i = 0;       /* counts children */
  do :: i < NP -> if :: PG(parents[i])!=NONE && GN(words[PG(parents[i])])==HG(parents[i]) -> kids[PG(parents[i])]++
                     :: else fi; i++
     :: else -> break od;
  FORGET; ranked = true } }
#define LEAF(p) (ST(words[p])==LIVE && kids[p]==0 && !((chosen>>(p))&1))
#if NP==2
#define SOME_LEAF (LEAF(0) || LEAF(1))
#elif NP==3
#define SOME_LEAF (LEAF(0) || LEAF(1) || LEAF(2))
#else
#define SOME_LEAF (LEAF(0) || LEAF(1) || LEAF(2) || LEAF(3))
#endif
inline fewer_kids(p) {
  if :: PG(parents[p])!=NONE && kids[PG(parents[p])]>0 && GN(words[PG(parents[p])])==HG(parents[p]) -> kids[PG(parents[p])]--
     :: else fi }
/* the compare-and-swap Live to Condemned; a batch has at least one page */
inline condemn(bb,kk) { atomic {
  if :: LEAF(0) -> bb = 0 :: LEAF(1) -> bb = 1
#if NP>2
     :: LEAF(2) -> bb = 2
#endif
#if NP>3
     :: LEAF(3) -> bb = 3
#endif
     :: b0!=NONE -> goto all_chosen fi;
  chosen = chosen | (1<<bb); fewer_kids(bb);
  if :: wd[bb]==words[bb] -> wd[bb] = MK(COND,0,GN(words[bb])) :: else -> kk = true fi;
  bb = H(bb,GN(words[bb])) } }
inline look_again(bb,kk) { atomic { if :: PG(bb)!=NONE && (raised>>PG(bb))&1 -> RESC(bb,kk) :: else fi } }
#define KEPT_PARENT(bb) (PG(parents[PG(bb)])!=NONE && GN(words[PG(parents[PG(bb)])])==HG(parents[PG(bb)]))
/* the truth that no rule may be needed for: no child, no holder */
#define TRUTH(bb) i = 0; \
  do :: i < NP -> assert(!(CANON(wd[i]) && par[i]==bb) || claim_child_of_retired); i++ :: else -> break od; \
  i = 0; assert(!HELD(PG(bb)) || claim_held_page)
inline retire(bb,kk) {
  atomic {
    if :: PG(bb)==NONE -> kk = true
       :: PG(bb)!=NONE && !kk && wd[PG(bb)]==MK(COND,0,HG(bb)) -> TRUTH(bb); wd[PG(bb)] = MK(RETI,0,HG(bb))
       :: else -> RESC(bb,kk);
#if CLOSURE
          if :: KEPT_PARENT(bb) -> kids[PG(parents[PG(bb)])]++;
                if :: parents[PG(bb)]==b1 && bb!=b1 -> k1 = true :: else fi
             :: else fi
#endif
       fi };
  if :: !kk -> atomic { assert(!HELD(PG(bb)) || claim_held_page); wd[PG(bb)] = MK(FREE,0,HG(bb)+GEN_GROWS); words[PG(bb)] = 0 }
     :: else fi
}
proctype Coord() { byte r, n, i, y, b0 = NONE, b1 = NONE, chosen; bool k0, k1, ranked;
  byte words[NP]; byte parents[NP]; byte kids[NP];
  do
  :: atomic { r < ROUNDS -> r++ };
#if COUNT_FIRST
     read_counters(); scan_pages();
#else
     scan_pages(); read_counters();
#endif
     rank();
     do
     :: atomic { n < BATCHES && SOME_LEAF -> n++; condemn(b0,k0) }; condemn(b1,k1);
all_chosen:
#if RECOUNT==2
        look_again(b0,k0); look_again(b1,k1);
#endif
        do :: atomic { i < NW -> y = slot[i]; i++ };
              atomic { if :: y!=NONE && y==b0 -> RESC(b0,k0) :: y!=NONE && y==b1 -> RESC(b1,k1) :: else fi; y = 0 }
           :: atomic { i == NW -> i = 0; break } od;
#if RECOUNT==1
        look_again(b0,k0); look_again(b1,k1);
#endif
        retire(b0,k0); retire(b1,k1);
        atomic { b0 = NONE; b1 = NONE; k0 = false; k1 = false; FORGET }
     :: REAP_HERE
     :: atomic { n == BATCHES || !SOME_LEAF ->
          n = 0; chosen = 0; ranked = false; armed = 0; raised = 0; i = 0;
          do :: i < NP -> words[i] = 0; parents[i] = 0; kids[i] = 0; i++ :: else -> break od; i = 0; break }
     od
#if REAP!=2
  :: reap()
#endif
  :: r == ROUNDS && ended[0] && ended[1] -> break
  od;
  /* ---- quiescence */
  atomic { i = 0;
    do :: i < NP -> assert(ST(wd[i])==FREE || ST(wd[i])==LIVE || claim_page_lost);
          assert(ST(wd[i])!=LIVE || PG(par[i])==NONE || wd[PG(par[i])]==MK(LIVE,0,HG(par[i])) || claim_parent); i++
       :: else -> break od;
    assert(slot[0]==NONE || claim_lease_left);
#if NW>1
    assert(slot[1]==NONE || claim_lease_left)
#endif
  }
}
#define START(p,b) wd[p] = MK(LIVE,0,1); par[p] = b
init { atomic { byte i;
  do :: i < NP -> wd[i] = MK(FREE,0,1); par[i] = NONE; i++ :: else -> break od; i = 0;
#if INIT==1
  START(0,NONE);
#elif INIT==2
  START(0,NONE); START(1,H(0,1));
#elif INIT==3
  START(1,NONE); START(0,H(1,1));
#elif INIT==4
  START(0,NONE); START(1,H(0,1)); START(2,H(0,1));
#elif INIT==5
  START(2,NONE); START(0,H(2,1)); START(1,H(2,1));
#elif INIT==6
  START(0,NONE); START(1,NONE);
#endif
  hold[0] = NONE; hold[1] = NONE; alive[0] = true; alive[1] = true;
  ended[1] = (NW == 1);
  do :: i < NW -> slot[i] = NONE; run Worker(i);
#if TSO
        run Drain(i);
#endif
        i++ :: else -> break od; i = 0;
#if REAP==2
  run Reaper();
#endif
  run Coord() } }
