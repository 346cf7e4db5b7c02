/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Readers that come through the index while entries go in and out and pages are used again for other keys;
   and pages that find no room in it.

   Rules (DESIGN.md): 1 state before tokens, 2 lease, 4 a full bucket leaves the page private, 12 entry out before
   Free, removal by the owner without the lock, 13 sweep. Claims: what a reader holds is a page of its key, and
   stays it; a page that is Live or Condemned with its entry during a whole lookup is found; two canonical pages
   never have one key; at quiescence every Live page has just one entry (a page without room never becomes Live, one
   that was tried again has it), and there is no other entry.

   Two keys with the same two buckets of one entry each (the worst case), entry = tag and page as in the code: the
   tag is the key here. A writer takes a page, writes tokens, announces, publishes; without room it stays private,
   is tried once more before it is published, and is given back if there is none. The evictor's look at the slots is
   one step (lease_evict.pml has it slot by slot, with store buffers). index_buckets.pml has buckets of two entries.
   Sequentially consistent.

   word = state | generation << 3

   Switches: each default is the protocol; another value is a mutant. */

#ifndef NP
#define NP 2
#endif
#ifndef OPS             /* pages that each writer publishes */
#define OPS 1
#endif
#ifndef ROUNDS          /* pages that are evicted */
#define ROUNDS 2
#endif
#ifndef STATE_FIRST     /* rule 1: state word, then tokens (0: the other way round) */
#define STATE_FIRST 1
#endif
#ifndef TOKENS          /* C3: tokens are compared (0: the tag decides) */
#define TOKENS 1
#endif
#ifndef RECHECK         /* rule 2 */
#define RECHECK 1
#endif
#ifndef RECHECK_GEN     /* rule 2: with the generation */
#define RECHECK_GEN 1
#endif
#ifndef ALL_TAGS        /* every entry with the tag is tried (0: only the first) */
#define ALL_TAGS 1
#endif
#ifndef ENTRY_FIRST     /* rule 12: entry out, then Free (0: the other way round) */
#define ENTRY_FIRST 1
#endif
#ifndef ROOM_NEEDED     /* rule 4: without an entry it stays private (0: is published all the same) */
#define ROOM_NEEDED 1
#endif
#ifndef N               /* entries: one a bucket (variant 1: one bucket for both keys, no room for two) */
#define N 2
#endif
#ifndef SWEEP_LOCKED    /* rule 13: the sweep runs under the stripe's lock */
#define SWEEP_LOCKED 1
#endif

#define FREE 0
#define WRITING 1
#define PENDING 2
#define LIVE 3
#define COND 4
#define RETI 5
#define NO 255
#define ST(w) ((w)&7)
#define GN(w) ((w)>>3)
#define MK(s,g) ((s)|((g)<<3))
#define ENTRY(k,p) (1+(p)+(k)*NP)
#define TAG(e) (((e)-1)/NP)
#define PAGE(e) (((e)-1)%NP)
#define CANON(w) (ST(w)==PENDING || ST(w)==LIVE || ST(w)==COND)
#define READABLE(w) (ST(w)==LIVE || ST(w)==COND)

hidden byte claim_held_page, claim_missed, claim_two_of_a_key, claim_unreachable, claim_stale_entry;
byte wd[NP]; byte kk[NP]; byte idx[N]; bool lk;
byte slot;                    /* of the reader: page + 1 */
byte held = NO; byte want;    /* ghost: the page that the reader believes it holds, and its key */
byte stable;                  /* ghost: pages of its key that were there since the lookup began */

#define LOCK atomic { !lk -> lk = true }
inline unindex(p) { atomic { i = 0;
  do :: i < N -> if :: idx[i]==ENTRY(kk[p],p) -> idx[i] = 0 :: else fi; i++ :: else -> break od; i = 0 } }
#define SAME(x,f) (x!=0 && TAG(x)==kk[f] && PAGE(x)!=f && kk[PAGE(x)]==kk[f] && CANON(wd[PAGE(x)]))
#define KEY_ONCE(p) assert(!(CANON(wd[1-(p)]) && kk[1-(p)]==kk[p]) || claim_two_of_a_key)

/* rule 4 for page f: e = its entry, NO without room, dup when another has the key */
inline enter() {
  LOCK;
  atomic { dup = false; e = NO; i = 0 };
  do :: i < N -> atomic {
        if :: SAME(idx[i],f) -> dup = true
           :: idx[i]==0 && e==NO -> e = i
           :: else fi; i++ }
     :: else -> break od;
  if :: !dup && e!=NO -> wd[f] = MK(PENDING,GN(wd[f])); atomic { KEY_ONCE(f); idx[e] = ENTRY(kk[f],f) }
     :: else fi;
  atomic { lk = false; i = 0 }
}
proctype Writer() { byte ops, f, e, i; bool dup;
  do
  :: ops < OPS -> ops++;
     atomic { if :: ST(wd[0])==FREE -> f = 0 :: ST(wd[1])==FREE -> f = 1 :: else -> goto done fi;
              wd[f] = MK(WRITING,GN(wd[f])) };
     if :: kk[f] = 0 :: kk[f] = 1 fi;
     enter();
     if :: ST(wd[f])==WRITING && e==NO && !dup -> enter() :: else fi;
     if :: ST(wd[f])==PENDING -> wd[f] = MK(LIVE,GN(wd[f]))
#if !ROOM_NEEDED
        :: ST(wd[f])==WRITING && !dup -> wd[f] = MK(LIVE,GN(wd[f]))
#endif
        :: else -> atomic { assert(ST(wd[f])==WRITING || claim_unreachable); wd[f] = MK(FREE,GN(wd[f])+1) } fi;
done: atomic { f = 0; e = 0; dup = false }
  :: else -> break
  od
}
/* past return, entry out, Free; a reader's lease rescues before */
proctype Evictor() { byte r, p, i;
  do
  :: r < ROUNDS ->
     atomic { r++; if :: ST(wd[0])==LIVE -> p = 0 :: ST(wd[1])==LIVE -> p = 1 :: else -> goto next fi;
              wd[p] = MK(COND,GN(wd[p])) };
     atomic { if :: slot==p+1 && ST(wd[p])==COND -> wd[p] = MK(LIVE,GN(wd[p])) :: else fi };
     atomic { if :: ST(wd[p])==COND -> assert(held!=p || claim_held_page); wd[p] = MK(RETI,GN(wd[p]));
                    stable = stable & ~(1<<p)
                 :: else -> goto next fi };
#if ENTRY_FIRST
     unindex(p);
     wd[p] = MK(FREE,GN(wd[p])+1);
#else
     wd[p] = MK(FREE,GN(wd[p])+1);
     unindex(p);
#endif
next: p = 0
  :: else -> break
  od
}
/* once, after a holder of the lock died: what it looks at may change before it removes */
proctype Sweep() { byte i, e;
#if SWEEP_LOCKED
  LOCK;
#endif
  do
  :: i < N -> e = idx[i];
     if :: e!=0 && !CANON(wd[PAGE(e)]) -> atomic { if :: idx[i]==e -> idx[i] = 0 :: else fi } :: else fi;
     i++
  :: else -> break
  od;
#if SWEEP_LOCKED
  lk = false
#endif
}
proctype Reader() { byte i, e, p, x; bool same;
  atomic { if :: want = 0 :: want = 1 fi;
    i = 0;
    do :: i < N -> if :: idx[i]!=0 && TAG(idx[i])==want && READABLE(wd[PAGE(idx[i])]) && kk[PAGE(idx[i])]==want ->
                         stable = stable | (1<<PAGE(idx[i])) :: else fi; i++
       :: else -> break od; i = 0 };
  do
  :: i < N && held==NO ->
     e = idx[i];
     if
     :: e!=0 && TAG(e)==want ->
        p = PAGE(e);
#if STATE_FIRST
        x = wd[p]; same = (kk[p]==want || !TOKENS);
#else
        same = (kk[p]==want || !TOKENS); x = wd[p];
#endif
        if
        :: READABLE(x) && same ->
           slot = p+1;
#if RECHECK
           atomic { if :: (!RECHECK_GEN || GN(wd[p])==GN(x)) && READABLE(wd[p]) ->
                          wd[p] = MK(LIVE,GN(wd[p])); held = p
                       :: else -> slot = 0 fi }
#else
           held = p
#endif
        :: else fi;
#if !ALL_TAGS
        break
#endif
     :: else fi;
     atomic { i++; e = 0; x = 0; same = false }
  :: else -> break
  od;
  atomic { assert(held!=NO || stable==0 || claim_missed);
           assert(held==NO || (kk[held]==want && READABLE(wd[held])) || claim_held_page) };
  if :: held!=NO -> atomic { assert((kk[held]==want && READABLE(wd[held])) || claim_held_page); held = NO }
     :: else fi;
  slot = 0
}
proctype Check() { byte i, n, p;
  timeout -> d_step {
    do :: p < NP -> n = 0; i = 0;
          do :: i < N -> if :: idx[i]!=0 && PAGE(idx[i])==p -> n++;
                               assert((ST(wd[p])==LIVE && TAG(idx[i])==kk[p]) || claim_stale_entry)
                            :: else fi; i++ :: else -> break od;
          assert(ST(wd[p])!=LIVE || n==1 || claim_unreachable);
          assert(ST(wd[p])==LIVE || ST(wd[p])==FREE || claim_unreachable); p++
       :: else -> break od } }
init { atomic { wd[0] = MK(LIVE,0); idx[0] = ENTRY(0,0);
  run Writer(); run Writer(); run Evictor(); run Sweep(); run Reader(); run Check() } }
