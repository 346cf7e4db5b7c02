/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   The bitmap of free pages, a hint that must not lose a page, against SIGKILL of a worker and of the
   coordinator at any step.

   Rules (DESIGN.md): C1, C5 for pages that are taken and given back; 14 reap; 15 adopt.
   Claims: nobody but its owner moves a Writing page. At quiescence (no operation under way, the dead
   reaped) every Free page has its bit set, no page is held by nobody, every counter held[w][chunk] is 0.
   A set bit on a page that is not Free is allowed: whoever meets it clears it.

   Take:    held[w][chunk]++; clear the page's bit (atomic and); load the state word; if it is Free,
            compare-and-swap it to Writing(w); if it is not, or that fails: held--, try another page.
   Free:    Free with the next generation; set the bit (atomic or); held--.
   Publish: Live; held--.
   Evict:   Free with the next generation; set the bit.
   Reap:    for each chunk with held[dead] > 0: free its Writing pages of the dead, set the bits of all
            its Free pages, then held = 0.    Adopt: set the bits of all Free pages, reap the dead.

   held[] over-approximates what a worker has in a chunk. The worker that dies is worker 0 (symmetry).
   Sequentially consistent: every access but the Free store and the counters is a locked instruction.
   The order of eviction is lease_evict.pml's matter, here any Live page goes.

   word = state(2) | owner(1)<<2 | gen<<3

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef NP             /* pages */
#define NP 2
#endif
#ifndef CHUNK          /* pages of a chunk */
#define CHUNK 2
#endif
#ifndef OPS            /* pages that a worker takes */
#define OPS 1
#endif
#ifndef ROUNDS         /* pages that one coordinator evicts */
#define ROUNDS 1
#endif
#ifndef KW             /* worker 0 may be killed */
#define KW 1
#endif
#ifndef KC             /* how often the coordinator may be killed */
#define KC 1
#endif
#ifndef HELD_FIRST     /* held++ 1 before the clear; 0 after it; 2 after the compare-and-swap */
#define HELD_FIRST 1
#endif
#ifndef LOAD_AFTER     /* the state word is loaded after the clear (0: before it) */
#define LOAD_AFTER 1
#endif
#ifndef FREE_THEN_BIT  /* the Free store comes before the bit (0: after it) */
#define FREE_THEN_BIT 1
#endif
#ifndef BIT_THEN_HELD  /* held-- comes after the bit (0: before it) */
#define BIT_THEN_HELD 1
#endif
#ifndef LIVE_THEN_HELD /* held-- comes after the Live store (0: before it) */
#define LIVE_THEN_HELD 1
#endif
#ifndef REAP_BITS      /* the reaper sets the bits of the chunk's Free pages */
#define REAP_BITS 1
#endif
#ifndef REAP_ALL_FREE  /* ... of all Free pages there (0: only of those that it freed itself) */
#define REAP_ALL_FREE 1
#endif
#ifndef REAP_ZERO_LAST /* the reaper clears held last (0: first) */
#define REAP_ZERO_LAST 1
#endif
#ifndef ADOPT_BITS     /* adoption sets the bits of all Free pages */
#define ADOPT_BITS 1
#endif

#define FREE 0
#define WRITING 1
#define LIVE 2
#define ST(x) ((x)&3)
#define OW(x) (((x)>>2)&1)
#define GN(x) ((x)>>3)
#define MK(s,o,g) ((s)|((o)<<2)|((g)<<3))
#define NCH ((NP+CHUNK-1)/CHUNK)
#define HELD(w,p) held[(w)*NCH+(p)/CHUNK]
#define BIT(p) (1<<(p))

hidden byte claim_own_page, claim_free_page_without_bit, claim_page_lost, claim_held_left, claim_stuck;
byte wd[NP]; byte bits; byte held[2*NCH];
bool alive[2]; bool ended[2]; bool reaped; byte calive = 1;
bool kill_worker; byte kill_coordinator;

inline any_page(v) {
  if :: v = 0 :: v = 1
#if NP>2
     :: v = 2
#endif
  fi }

proctype Worker(byte w) { byte ops, p, x, mine; bool had;
  {
  do
  /* ---- take a page */
  :: ops < OPS ->
     atomic { ops++; any_page(p); if :: bits & BIT(p) :: else -> p = 0; goto next fi };
#if !LOAD_AFTER
     x = wd[p];
#endif
#if HELD_FIRST==1
     HELD(w,p)++;
#endif
     atomic { had = (bits & BIT(p)) != 0; bits = bits & ~BIT(p) };
#if HELD_FIRST==0
     HELD(w,p)++;
#endif
     /* the bit was clear already: another taker is at it; trying all the same is allowed */
     if :: !had -> goto lost :: true fi;
#if LOAD_AFTER
     x = wd[p];
#endif
     if :: ST(x) != FREE -> goto lost :: else fi;
     atomic { if :: wd[p]==x -> wd[p] = MK(WRITING,w,GN(x)); mine = mine | BIT(p) :: else -> goto lost fi };
#if HELD_FIRST==2
     HELD(w,p)++;
#endif
     goto next;
lost:
#if HELD_FIRST!=2
     HELD(w,p)--;
#endif
next: atomic { x = 0; p = 0; had = false }
  /* ---- give one up, or publish it */
  :: mine != 0 ->
     atomic { any_page(p); if :: mine & BIT(p) :: else -> p = 0; goto done fi;
              assert((ST(wd[p])==WRITING && OW(wd[p])==w) || claim_own_page); mine = mine & ~BIT(p) };
     if
     :: true ->
#if !BIT_THEN_HELD
        HELD(w,p)--;
#endif
#if FREE_THEN_BIT
        wd[p] = MK(FREE,0,GN(wd[p])+1);
        bits = bits | BIT(p);
#else
        bits = bits | BIT(p);
        wd[p] = MK(FREE,0,GN(wd[p])+1);
#endif
#if BIT_THEN_HELD
        HELD(w,p)--
#endif
     :: true ->
#if LIVE_THEN_HELD
        wd[p] = MK(LIVE,0,GN(wd[p]));
        HELD(w,p)--
#else
        HELD(w,p)--;
        wd[p] = MK(LIVE,0,GN(wd[p]))
#endif
     fi;
     p = 0;
done: skip
  :: ops == OPS && mine == 0 -> break
  od;
  atomic { ops = 0; ended[w] = true }
  } unless { atomic { !alive[w] -> ops = 0; p = 0; x = 0; mine = 0; had = false } }
}

inline set_bits_of_chunk(c,only) {
  p = c*CHUNK;
  do :: p < (c+1)*CHUNK && p < NP ->
        x = wd[p]; if :: ST(x)==FREE && (only & BIT(p)) -> bits = bits | BIT(p) :: else fi; atomic { p++; x = 0 }
     :: else -> break od; p = 0
}
inline reap() {
  c = 0;
  do :: c < NCH ->
     if :: held[c] > 0 ->
#if !REAP_ZERO_LAST
           held[c] = 0;
#endif
           p = c*CHUNK; freed = 0;
           do :: p < (c+1)*CHUNK && p < NP ->
                 atomic { if :: ST(wd[p])==WRITING && OW(wd[p])==0 ->
                                wd[p] = MK(FREE,0,GN(wd[p])+1); freed = freed | BIT(p) :: else fi; p++ }
              :: else -> break od;
#if REAP_BITS
           set_bits_of_chunk(c, (REAP_ALL_FREE -> 255 : freed));
#endif
           held[c] = 0
        :: else fi;
     atomic { c++; p = 0; freed = 0 }
  :: else -> break od;
  atomic { c = 0; reaped = true }
}
proctype Coord() { byte me = 1, r, p, x, c, freed;
  do :: {
    if :: me > 1 && ADOPT_BITS ->
          c = 0; do :: c < NCH -> set_bits_of_chunk(c,255); c++ :: else -> break od; c = 0
       :: else fi;
    do
    :: !alive[0] && !reaped -> reap()
    :: r < ROUNDS -> r++;
       atomic { any_page(p); if :: ST(wd[p])==LIVE :: else -> goto next fi };
#if FREE_THEN_BIT
       wd[p] = MK(FREE,0,GN(wd[p])+1);
       bits = bits | BIT(p);
#else
       bits = bits | BIT(p);
       wd[p] = MK(FREE,0,GN(wd[p])+1);
#endif
next:  p = 0
    od
  } unless { atomic { me != calive -> me = calive; r = 0; p = 0; x = 0; c = 0; freed = 0 } }
  od
}
proctype Killer() {
  do
  :: atomic { kill_worker && !ended[0] -> kill_worker = false; alive[0] = false }
  :: atomic { kill_coordinator > 0 -> kill_coordinator--; calive++ }
  od
}
proctype Checker() { byte p;
  timeout -> d_step {
    assert(((ended[0] || (!alive[0] && reaped)) && ended[1]) || claim_stuck);
    do :: p < NP -> assert(ST(wd[p]) != WRITING || claim_page_lost);
                    assert(ST(wd[p]) != FREE || (bits & BIT(p)) || claim_free_page_without_bit); p++
       :: else -> break od; p = 0;
    do :: p < 2*NCH -> assert(held[p]==0 || claim_held_left); p++ :: else -> break od
  }
}
init { atomic { byte p;
  do :: p < NP -> wd[p] = MK(FREE,0,1); bits = bits | BIT(p); p++ :: else -> break od;
  wd[0] = MK(LIVE,0,1);                       /* one Live page with a bit that is stale */
  alive[0] = true; alive[1] = true;
#if KW
  if :: kill_worker = true :: skip fi;
#endif
  if :: kill_coordinator = 0
#if KC
     :: kill_coordinator = KC
#endif
     fi;
  run Worker(0); run Worker(1); run Coord(); run Killer(); run Checker(); p = 0 } }
