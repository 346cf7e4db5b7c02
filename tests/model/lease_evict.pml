/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Lease against eviction: begin, lease, rescue, announce, publish and release of workers against the
   rounds of the evictor, on x86-TSO store buffers, with pages recycled at once (ABA).

   Rules (DESIGN.md): 1 begin, 2 lease, 5 announce counter, 6 publish, 10 order of a round, 11 closure,
   12 generation grows when a page is freed.
   Claims: a page that a worker believes it holds is Live or Condemned, of the same generation, and is
   the page of the worker's tokens (C3, C4); no page with a Live or Pending child, and no held page,
   is retired; a rescued page has a Live or Condemned parent (C2).

   Over-approximations (they only add behaviours, so "holds" is safe):
   - no index: a reader may try ANY page as its candidate (covers index, stale entries, runs, hints);
   - no ranking: a batch is ANY one or two Live pages that the scan saw without children outside it;
   - no kills here: announce_reap.pml has them.
   One shared access per step; what stands in one atomic{} is one access plus private work.

   word = state(3) | gen<<3      handle = page(3) | gen<<3, page 7 = root or none
   body = parent handle | token<<8.  Token paths are (1,3) and (2,3).

   Switches: each default is the protocol; another value is a mutant unless it says "variant". */

#ifndef NP              /* pages */
#define NP 3
#endif
#ifndef NW              /* workers */
#define NW 2
#endif
#ifndef OPS             /* requests of each worker */
#define OPS 1
#endif
#ifndef ROUNDS          /* rounds of the evictor */
#define ROUNDS 1
#endif
#ifndef FINE            /* variant 0: a slot read and the rescue that follows it are one step */
#define FINE 1
#endif
#ifndef STATE_FIRST     /* rule 1: state word before parent and tokens (0: after) */
#define STATE_FIRST 1
#endif
#ifndef PARENT_GEN      /* rule 1: the generation is part of the parent comparison */
#define PARENT_GEN 1
#endif
#ifndef TAKE_PENDING    /* rules 1, 2: 1 = begin walks over Pending pages and leases them like Live ones */
#define TAKE_PENDING 0
#endif
#ifndef WORKER_FENCE    /* rules 2, 17: full fence between lease store and re-check */
#define WORKER_FENCE 1
#endif
#ifndef RECHECK         /* rule 2: the re-check at all */
#define RECHECK 1
#endif
#ifndef LEASE_GEN       /* rule 2: the re-check compares the generation */
#define LEASE_GEN 1
#endif
#ifndef RESCUE_CAS      /* rule 2: rescue by compare-and-swap (0: by a store) */
#define RESCUE_CAS 1
#endif
#ifndef FALLBACK_CHECK  /* rule 2: the parent is acquired by the same rule (0: just stored) */
#define FALLBACK_CHECK 1
#endif
#ifndef DIRECT          /* rule 4: 1 = Writing to Live without Pending */
#define DIRECT 0
#endif
#ifndef BUMP            /* rule 5: counter raised 1 after Pending; 2 before Pending; 3 after the move; 0 never */
#define BUMP 1
#endif
#ifndef MOVE            /* rule 6: lease moves 1 while Pending; 2 after Live; 3 before Pending; 4 never */
#define MOVE 1
#endif
#ifndef EVICTOR_FENCE   /* rules 10, 17: fence after condemning (0: condemn is a plain buffered store) */
#define EVICTOR_FENCE 1
#endif
#ifndef COUNT_FIRST     /* rule 10: counters read before the scan (0: after it) */
#define COUNT_FIRST 1
#endif
#ifndef RECOUNT_LAST    /* rule 10: counters read again after the slots (0: before them; 2: never) */
#define RECOUNT_LAST 1
#endif
#ifndef PENDING_COUNTS  /* rule 10: a Pending child counts in the scan */
#define PENDING_COUNTS 1
#endif
#ifndef LEASE_SCAN      /* rule 10: the slots are read after condemning (0: never; 2: before) */
#define LEASE_SCAN 1
#endif
#ifndef CHILD_FIRST     /* rule 11: children are retired before parents */
#define CHILD_FIRST 1
#endif
#ifndef CLOSURE         /* rule 11: a child of the batch that did not retire rescues its parent */
#define CLOSURE 1
#endif
#ifndef RETIRE_CAS      /* rule 11: retire by compare-and-swap (0: by a store) */
#define RETIRE_CAS 1
#endif
#ifndef GEN_GROWS       /* rule 12: Free with the next generation */
#define GEN_GROWS 1
#endif

#define FREE 0
#define WRITING 1
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define NONE 7
#define ST(w) ((w)&7)
#define GN(w) ((w)>>3)
#define MK(s,g) ((s)|((g)<<3))
#define PG(h) ((h)&7)
#define H(p,g) ((p)|((g)<<3))
#define BODY(par,tok) ((par)|((tok)<<8))

/* shared memory: words, bodies, lease slots; one FIFO store buffer a worker (and one for the evictor) */
#define WORD(p) (p)
#define BD(p) (NP+(p))
#define SLOT(i) (2*NP+(i))
#define w_(p) mem[WORD(p)]
#define parof(p) (mem[BD(p)]&255)
#define tokof(p) (mem[BD(p)]>>8)
/* names of the claims, for the report; always 0 */
hidden byte claim_held_page, claim_tokens, claim_parent, claim_child_of_retired, claim_retired_while_held;
short mem[2*NP+NW];
byte ann[NP];               /* announce counters: locked increments, so not buffered */
byte held[NP];              /* ghost: how many workers believe that they hold the page */
#define EV NW
chan sb[NW+1] = [3] of { byte, short };
#define STORE(me,a,v) nfull(sb[me]) -> sb[me]!a,v
#define MFENCE(me) empty(sb[me])
proctype Drain(byte w) { byte a; short v;
endl: do :: atomic { sb[w]?a,v -> mem[a] = v; a = 0; v = 0 } od
}

#define LIVE_OR_COND(x) (ST(x)==LIVE || ST(x)==COND)
#define PARENT_OK(p) (PG(parof(p))==NONE || \
  (GN(w_(PG(parof(p))))==GN(parof(p)) && LIVE_OR_COND(w_(PG(parof(p))))))
#define HELD_IS_MINE(i) (GN(w_(PG(h[i])))==GN(h[i]) && LIVE_OR_COND(w_(PG(h[i]))))

inline any_page(v) {
  if :: v = 0 :: v = 1
#if NP>2
     :: v = 2
#endif
#if NP>3
     :: v = 3
#endif
     :: v = NONE fi
}
#define WALKABLE(x) (LIVE_OR_COND(x) || (TAKE_PENDING && ST(x)==PENDING))
#if PARENT_GEN
#define IS_CHILD_OF(c,f) (parof(c)==(f))
#else
#define IS_CHILD_OF(c,f) (PG(parof(c))==PG(f))
#endif
#define MATCHES(c) (IS_CHILD_OF(c,f) && tokof(c)==(k==0 -> t1 : 3))

proctype Worker(byte w) {
  byte ops = 0, k = 0, c, t1, x, f, i; byte h[2]; bool fell = false;
  do
  :: ops < OPS ->
     atomic { ops++; if :: t1 = 1 :: t1 = 2 fi; k = 0 };
     /* ---- begin: the walk, unprotected (rule 1) */
     do
     :: k < 2 ->
#if STATE_FIRST
        atomic { any_page(c); if :: c == NONE -> goto walked :: else fi;
          x = w_(c); if :: WALKABLE(x) :: else -> goto walked fi };
        atomic { if :: k==0 -> f = NONE :: else -> f = h[0] fi;
          if :: MATCHES(c) :: else -> goto walked fi;
          h[k] = H(c,GN(x)); k++; c = 0; x = 0; f = 0 }
#else
        atomic { any_page(c); if :: c == NONE -> goto walked :: else fi;
          if :: k==0 -> f = NONE :: else -> f = h[0] fi;
          if :: MATCHES(c) :: else -> goto walked fi };
        atomic { x = w_(c); if :: WALKABLE(x) :: else -> goto walked fi;
          h[k] = H(c,GN(x)); k++; c = 0; x = 0; f = 0 }
#endif
     :: else -> break
     od;
walked: atomic { c = 0; x = 0; f = 0; fell = false };
     /* ---- lease the deepest, fall back to the parent (rule 2) */
     do
     :: k == 0 -> atomic { STORE(w, SLOT(w), NONE); goto have }
     :: k > 0 ->
        STORE(w, SLOT(w), h[k-1]);
#if !RECHECK
        goto got;
#endif
#if !FALLBACK_CHECK
        if :: fell -> goto got :: else fi;
#endif
        atomic {
#if WORKER_FENCE
          MFENCE(w) ->
#endif
          x = w_(PG(h[k-1]));
          if
#if LEASE_GEN
          :: x == MK(LIVE,GN(h[k-1])) -> goto got
          :: x == MK(COND,GN(h[k-1])) -> skip
#if TAKE_PENDING
          :: x == MK(PENDING,GN(h[k-1])) -> goto got
#endif
#else
          :: ST(x) == LIVE -> goto got
          :: ST(x) == COND -> skip
#endif
          :: else -> x = 0; k--; h[k] = 0; fell = true; goto again fi }
#if RESCUE_CAS
        atomic { MFENCE(w) ->      /* a locked instruction drains the buffer */
          if :: w_(PG(h[k-1])) == x -> w_(PG(h[k-1])) = MK(LIVE,GN(x));
                assert(PARENT_OK(PG(h[k-1])) || claim_parent); goto got
             :: w_(PG(h[k-1])) == MK(LIVE,GN(x)) -> goto got
             :: else -> x = 0; k--; h[k] = 0; fell = true fi }
#else
        atomic { w_(PG(h[k-1])) = MK(LIVE,GN(x)); assert(PARENT_OK(PG(h[k-1])) || claim_parent); goto got }
#endif
again:  skip
     od;
got: atomic {           /* now the worker believes that it holds h[0..k-1] */
       i = 0; x = 0;
       do :: i < k -> held[PG(h[i])]++; assert(HELD_IS_MINE(i) || claim_held_page);
             assert(tokof(PG(h[i])) == (i==0 -> t1 : 3) || claim_tokens);
             assert(parof(PG(h[i])) == (i==0 -> NONE : h[0]) || claim_parent); i++
          :: else -> break od; i = 0; fell = false };
have:
     /* ---- extend page by page under the leased parent or the root: allocate, announce, publish */
     do
     :: k < 2 ->
        atomic { x = 0; any_page(f);
          if :: f == NONE -> goto rel :: else fi;
          if :: ST(w_(f))==FREE :: else -> goto rel fi;
          MFENCE(w) -> if :: ST(w_(f))==FREE -> x = GN(w_(f)); w_(f) = MK(WRITING,x)
                          :: else -> goto rel fi;
          h[k] = H(f,x); x = 0 };
        atomic { if :: k==0 -> STORE(w, BD(f), BODY(NONE,t1)) :: else -> STORE(w, BD(f), BODY(h[0],3)) fi };
#if MOVE==3
        STORE(w, SLOT(w), h[k]);
#endif
#if BUMP==2
        atomic { MFENCE(w) -> if :: k>0 -> ann[PG(h[0])]++ :: else fi };
#endif
#if !DIRECT
        STORE(w, WORD(f), MK(PENDING,GN(h[k])));
#endif
#if BUMP==1
        atomic { MFENCE(w) -> if :: k>0 -> ann[PG(h[0])]++ :: else fi };
#endif
#if MOVE==1
        STORE(w, SLOT(w), h[k]);
#endif
#if BUMP==3
        atomic { MFENCE(w) -> if :: k>0 -> ann[PG(h[0])]++ :: else fi };
#endif
        atomic { STORE(w, WORD(f), MK(LIVE,GN(h[k]))); held[f]++; k++ };
#if MOVE==2
        STORE(w, SLOT(w), h[k-1]);
#endif
        f = 0
     :: else -> break
     od;
rel: /* ---- release: give up the ghost claim, then clear the slot */
     atomic { f = 0; x = 0; do :: k > 0 -> k--; held[PG(h[k])]--; h[k] = 0 :: else -> break od;
     STORE(w, SLOT(w), NONE); t1 = 0 }
  :: else -> break
  od
}

/* ---------------- evictor: a batch of up to two, b0 retired before b1 */
#if CHILD_FIRST
#define ORDER_OK (parof(b1) != b0)
#else
#define ORDER_OK (parof(b1) == b0)
#endif
#define IS_KID(i) ((ST(w_(i))==LIVE || (PENDING_COUNTS && ST(w_(i))==PENDING)) && PG(parof(i))!=NONE)
/* rescue by compare-and-swap Condemned to Live */
#define RESC(bb,rr) if :: w_(PG(bb)) == MK(COND,GN(bb)) -> w_(PG(bb)) = MK(LIVE,GN(bb)) :: else fi; rr = true
#if EVICTOR_FENCE
#define CONDEMN(bb) w_(PG(bb)) = MK(COND,GN(bb))
#else
#define CONDEMN(bb) STORE(EV, WORD(PG(bb)), MK(COND,GN(bb)))
#endif
inline read_counters() { i = 0; do :: i < NP -> atomic { sc[i] = ann[i]; i++ } :: else -> break od; i = 0 }
inline scan_pages() { i = 0;
  do :: i < NP -> atomic { if :: IS_KID(i) -> kids[PG(parof(i))] = kids[PG(parof(i))] | (1<<i) :: else fi; i++ }
     :: else -> break od; i = 0 }
inline scan_slots() { i = 0;
  do :: i < NW ->
#if FINE
        y = mem[SLOT(i)];
        atomic { if :: b0!=NONE && y==b0 -> RESC(b0,r0) :: b1!=NONE && y==b1 -> RESC(b1,r1) :: else fi; i++; y = 0 }
#else
        atomic { if :: b0!=NONE && mem[SLOT(i)]==b0 -> RESC(b0,r0)
                    :: b1!=NONE && mem[SLOT(i)]==b1 -> RESC(b1,r1) :: else fi; i++ }
#endif
     :: else -> break od; i = 0 }
inline recount() {
  atomic { if :: ann[PG(b0)] != sc[PG(b0)] -> RESC(b0,r0) :: else fi };
  if :: b1!=NONE -> atomic { if :: ann[PG(b1)] != sc[PG(b1)] -> RESC(b1,r1) :: else fi } :: else fi }
/* the truth that no rule may be needed for: no child, no holder */
#define TRUTH(bb) i = 0; \
  do :: i < NP -> assert(!((ST(w_(i))==LIVE || ST(w_(i))==PENDING) && parof(i) == bb) || claim_child_of_retired); i++ \
     :: else -> break od; i = 0; assert(held[PG(bb)]==0 || claim_retired_while_held)
/* Condemned -> Retiring (the index entry goes meanwhile) -> Free with the next generation */
inline retire(bb,rr) {
  atomic {
#if RETIRE_CAS
    if :: !rr && w_(PG(bb)) == MK(COND,GN(bb)) ->
#else
    if :: !rr ->
#endif
          TRUTH(bb); w_(PG(bb)) = MK(RETI,GN(bb))
       :: else -> rr = true fi };
  if :: !rr -> atomic { assert(held[PG(bb)]==0 || claim_retired_while_held); w_(PG(bb)) = MK(FREE,GN(bb)+GEN_GROWS) } :: else fi
}
proctype Evictor() {
  byte r = 0, i, b0 = NONE, b1 = NONE, y; bool r0, r1; byte sc[NP]; byte kids[NP];
#if LEASE_SCAN==2
  byte sl[NW];
#endif
  do
  :: r < ROUNDS -> r++;
#if COUNT_FIRST
     read_counters(); scan_pages();
#else
     scan_pages(); read_counters();
#endif
#if LEASE_SCAN==2
     i = 0; do :: i < NW -> atomic { sl[i] = mem[SLOT(i)]; i++ } :: else -> break od; i = 0;
#endif
     atomic { any_page(b0);
       if :: b0 != NONE && (kids[b0]==0 || !CHILD_FIRST) && ST(w_(b0))==LIVE -> b0 = H(b0,GN(w_(b0))); CONDEMN(b0)
          :: else -> goto next fi };
     atomic { any_page(b1);
       if :: b1 != NONE && b1 != PG(b0) && (kids[b1] & (255-(1<<PG(b0)))) == 0 && ST(w_(b1))==LIVE &&
             ORDER_OK ->
             b1 = H(b1,GN(w_(b1))); CONDEMN(b1)
          :: else -> b1 = NONE fi };
#if !CHILD_FIRST
     atomic { if :: kids[PG(b0)] & (255-(1<<PG(b1))) -> RESC(b0,r0) :: else fi };
#endif
#if RECOUNT_LAST==0
     recount();
#endif
#if LEASE_SCAN==1
     scan_slots();
#elif LEASE_SCAN==2
     atomic { i = 0;
       do :: i < NW -> if :: sl[i]==b0 -> RESC(b0,r0) :: b1!=NONE && sl[i]==b1 -> RESC(b1,r1) :: else fi; i++
          :: else -> break od; i = 0 };
#endif
#if RECOUNT_LAST==1
     recount();
#endif
     retire(b0,r0);
     if :: b1!=NONE ->
#if CLOSURE
        atomic { if :: r0 && parof(PG(b0)) == b1 -> RESC(b1,r1) :: else fi };
#endif
        retire(b1,r1)
        :: else fi;
     atomic { if :: b0!=NONE -> RESC(b0,r0) :: else fi; if :: b1!=NONE -> RESC(b1,r1) :: else fi };
next: atomic { b0 = NONE; b1 = NONE; r0 = false; r1 = false; i = 0;
       do :: i < NP -> sc[i] = 0; kids[i] = 0; i++ :: else -> break od; i = 0 }
  :: else -> break
  od
}
init { atomic {
  byte i = 0;
  w_(0) = MK(LIVE,1); mem[BD(0)] = BODY(NONE,1);          /* path (1)   */
  w_(1) = MK(LIVE,1); mem[BD(1)] = BODY(H(0,1),3);        /* path (1,3) */
  i = 2; do :: i < NP -> w_(i) = MK(FREE,1); mem[BD(i)] = BODY(NONE,0); i++ :: else -> break od;
  i = 0; do :: i < NW -> mem[SLOT(i)] = NONE; run Worker(i); i++ :: else -> break od;
  i = 0; do :: i < NW + (1-EVICTOR_FENCE) -> run Drain((i<NW -> i : EV)); i++ :: else -> break od;
  i = 0; run Evictor() } }
