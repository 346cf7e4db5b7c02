/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Two workers prepare a batch each at the same time, in a pool that has not enough for both: all or none.

   Rules (DESIGN.md): "Batch" (who waits for pages holds nothing taken for that call), C4.
   Claims: nobody is left waiting while the other one is through; who waits holds neither lease nor page; what a batch
   matched is not evicted while it uses it; at the end every page is cached or Free.

   Each batch has one item that begins with a cached page of its own (0 or 1) and needs two more pages; when its
   cached page is gone, it needs three. There are three pages: 0 and 1, cached, and 2, Free. So neither can go on
   before a page of the two is evicted, and one must wait for the other. The evictor makes room for who waits, of
   cached pages without a lease. Pages are taken one by one; who comes up short gives all back and waits until there
   may be enough, takes them, and matches again; if that needs more, it takes that or gives all back. Sequentially
   consistent; the lease's own races are lease_evict.pml, the order of waiters waiting_order.pml.

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef DROP_LEASES    /* leases are given back before the wait */
#define DROP_LEASES 1
#endif
#ifndef GIVE_BACK      /* 1 pages are, too; 0 they are kept for the next try; 2 they are forgotten */
#define GIVE_BACK 1
#endif
#ifndef REMATCH        /* after the wait the match is made again (0: the old one is believed) */
#define REMATCH 1
#endif
#ifndef COUNT_AGAIN    /* ... and what is needed is counted again (0: as many as before) */
#define COUNT_AGAIN 1
#endif

#define FREE 0
#define CACHED 3
#define OWN(w) (4+(w))
hidden byte claim_left_waiting, claim_waits_holding, claim_used_page_evicted, claim_page_lost, claim_too_few;
byte st[3]; bool lease[2]; bool uses[2]; bool wants[2]; bool done[2];
#define NFREE ((st[0]==FREE) + (st[1]==FREE) + (st[2]==FREE))

/* up to `need` pages in all, one by one; have = how many are in hand */
inline take() { i = 0;
  do :: i < 3 && have < need -> atomic { if :: st[i]==FREE -> st[i] = OWN(w); have++ :: else fi; i++ }
     :: else -> break od; i = 0 }
inline give_back() { i = 0;
  do :: i < 3 -> atomic { if :: st[i]==OWN(w) -> st[i] = FREE :: else fi; i++ } :: else -> break od; i = 0; have = 0 }
inline match() { atomic { if :: st[w]==CACHED -> lease[w] = true; hit = true :: else -> hit = false fi } }

proctype Worker(byte w) { byte i, have, need; bool hit;
  match();
  need = (hit -> 2 : 3);
  take();
  do
  :: have >= need -> break
  :: else ->
#if DROP_LEASES
     lease[w] = false;
#endif
#if GIVE_BACK==1
     give_back();
#elif GIVE_BACK==2
     have = 0;
#endif
     atomic { assert((DROP_LEASES!=1 || !lease[w]) && (GIVE_BACK!=1 || have==0) || claim_waits_holding);
              wants[w] = true };
     /* until there are enough; it takes them at once */
     NFREE + have >= need;
     take();
     wants[w] = false;
     if :: have >= need ->
#if REMATCH
           match();
#if COUNT_AGAIN
           need = (hit -> 2 : 3);
           take()
#endif
#else
           skip
#endif
        :: else fi
  od;
  /* ---- it goes on: the cached page is read, the others are written */
  atomic { if :: hit -> uses[w] = true; assert(st[w]==CACHED || claim_used_page_evicted) :: else fi;
           assert(have + hit >= 3 || claim_too_few) };
  atomic { uses[w] = false; lease[w] = false };
  give_back();
  done[w] = true
}
proctype Evictor() { byte i;
  do
  :: atomic { (wants[0] || wants[1]) && st[0]==CACHED && !lease[0] ->
              assert(!uses[0] || claim_used_page_evicted); st[0] = FREE }
  :: atomic { (wants[0] || wants[1]) && st[1]==CACHED && !lease[1] ->
              assert(!uses[1] || claim_used_page_evicted); st[1] = FREE }
  od }
proctype Check() { timeout ->
  assert((done[0] && done[1]) || claim_left_waiting);
  assert((st[0]<=CACHED && st[1]<=CACHED && st[2]<=CACHED) || claim_page_lost) }
init { atomic { st[0] = CACHED; st[1] = CACHED; run Worker(0); run Worker(1); run Evictor(); run Check() } }
