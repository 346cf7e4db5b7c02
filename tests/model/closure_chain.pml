/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   The closure of a batch over a chain of three pages A <- B <- C (A the parent of B, B of C), with two
   workers that lease any of them at any moment, on x86-TSO store buffers.

   Rules (DESIGN.md): 11 closure, 2 rescue and fall back, 10 order of a round.
   Claims: no page is retired while it or a page below it is used, or while a page below it is Live or
   Condemned; a page is rescued only under a parent that is Live or Condemned (C2).

   All three start Live. A batch is C, B and C, or all three. A worker has walked the path down to a page
   before (unprotected), then leases by rule 2, uses the page with its ancestors, and releases.
   Simplifications: nothing is announced and a freed page is not taken again (lease_evict.pml has both).

   Switches: each default is the protocol; another value is a mutant. */

#ifndef NW
#define NW 2
#endif
#ifndef OPS
#define OPS 1
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef CLOSURE     /* rule 11: 1 each page looks whether its child became Retiring; 0 no closure;
                       2 computed once after the slots were read; 3 one level only; 4 a child rescued by a
                       worker (the compare-and-swap to Retiring fails) does not count */
#define CLOSURE 1
#endif
#ifndef CHILD_FIRST /* rule 11: children are retired first */
#define CHILD_FIRST 1
#endif

#define FREE 0
#define LIVE 3
#define COND 4
#define RETI 5
#define NONE 7
hidden byte claim_used_page_retired, claim_page_below, claim_parent, claim_used_page;
byte st[3]; byte slot[NW]; byte use[3];                /* use: ghost counts */
chan sb[NW] = [2] of { byte };                         /* only slot stores are buffered */
#define STORE(w,v) nfull(sb[w]) -> sb[w]!v
#define PRESENT(p) (st[p]==LIVE || st[p]==COND)
#define PARENT_OK(p) (p==0 || PRESENT(p-1))
proctype Drain(byte w) { byte v; endl: do :: atomic { sb[w]?v -> slot[w] = v; v = 0 } od }

proctype Worker(byte w) { byte ops, d, i;
  do
  :: ops < OPS ->
     atomic { ops++; if :: d = 1 :: d = 2 :: d = 3 fi };
     do
     :: d == 0 -> STORE(w, NONE); goto rel
     :: else ->
        STORE(w, d-1);
        atomic { empty(sb[w]) ->
          if :: st[d-1]==LIVE -> goto got :: st[d-1]==COND :: else -> d--; goto again fi };
        atomic {
          if :: st[d-1]==COND -> st[d-1] = LIVE; assert(PARENT_OK(d-1) || claim_parent); goto got
             :: st[d-1]==LIVE -> goto got
             :: else -> d-- fi };
again:  skip
     od;
got: atomic { i = 0; do :: i < d -> assert(PRESENT(i) || claim_used_page); use[i]++; i++ :: else -> break od; i = 0 };
     atomic { do :: i < d -> use[i]--; i++ :: else -> break od; i = 0; d = 0; STORE(w, NONE) };
rel: skip
  :: else -> break
  od
}

/* the parent-first mutant meets children that are still Condemned: only Live ones count there */
#define BELOW(p) (st[p]==LIVE || (CHILD_FIRST && st[p]==COND))
#define RESC(p) if :: st[p]==COND -> st[p] = LIVE :: else fi; kept[p] = true
inline retire(p) {
  atomic {
    if :: batch[p] && !kept[p] && st[p]==COND ->
          assert(use[p]==0 || claim_used_page_retired);
          assert(p==2 || !BELOW(p+1) || claim_page_below);
          st[p] = RETI
       :: else ->
#if CLOSURE!=4
          kept[p] = true
#endif
       fi };
  if :: st[p]==RETI -> st[p] = FREE :: else fi
}
/* p's child is in the batch and was kept: p is kept */
inline look(p) { atomic { if :: batch[p] && batch[p+1] && kept[p+1] -> RESC(p) :: else fi } }
proctype Evictor() { byte r, i, y, lo, hi; bool batch[3]; bool kept[3];
  do
  :: r < ROUNDS -> r++;
     /* the batch: from the leaf hi of what is still there up to lo, condemned from the top */
     atomic { hi = 2; do :: hi > 0 && !PRESENT(hi) -> hi-- :: else -> break od;
       if :: hi > 0 && PRESENT(0) -> lo = 0 :: hi > 1 && PRESENT(1) -> lo = 1 :: lo = hi fi;
       i = lo };
     do :: i <= hi -> atomic { if :: st[i]==LIVE -> st[i] = COND; batch[i] = true :: else fi; i++ } :: else -> break od;
     atomic { lo = 0; hi = 0; i = 0 };
     do :: i < NW -> y = slot[i]; atomic { if :: y!=NONE && batch[y] -> RESC(y) :: else fi; i++; y = 0 }
        :: else -> break od;
     i = 0;
     /* a child outside the batch keeps its parent (known from the scan) */
     atomic { if :: batch[0] && !batch[1] && PRESENT(1) -> RESC(0) :: else fi;
              if :: batch[1] && !batch[2] && PRESENT(2) -> RESC(1) :: else fi };
#if CLOSURE==2
     look(1); look(0);
#endif
#if CHILD_FIRST
     retire(2);
#if CLOSURE==1 || CLOSURE==3 || CLOSURE==4
     look(1);
#endif
     retire(1);
#if CLOSURE==1 || CLOSURE==4
     look(0);
#endif
     retire(0);
#else
     retire(0); retire(1); retire(2);
#endif
     atomic { do :: i < 3 -> if :: st[i]==COND -> st[i] = LIVE :: else fi; batch[i] = false; kept[i] = false; i++
                 :: else -> break od; i = 0 }
  :: else -> break
  od
}
init { atomic { byte i;
  do :: i < 3 -> st[i] = LIVE; i++ :: else -> break od; i = 0;
  do :: i < NW -> slot[i] = NONE; run Worker(i); run Drain(i); i++ :: else -> break od; i = 0;
  run Evictor() } }
