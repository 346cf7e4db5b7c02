/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Requests that run while their namespace is flushed: a begin, a wait for a page that another one computes, a
   publish.

   Rules (DESIGN.md): 18 flush (flush.pml has the pages of the dead generation), 2 lease.
   Claims: what a begin or a wait answers with was no page of a generation that was over when its lease was taken; a
   publish that is called after the flush publishes nothing; what is Live under the dead generation and in nobody's
   hands is gone at last.

   One page that hangs under the root; it is Pending at first, of a worker that publishes it. A reader begins: it
   reads the root's generation, looks for the page under it, leases it, reads the root again and begins anew when
   that changed. When the page is Pending, it waits and does the same. The evictor takes pages of the dead
   generation whenever nobody leases them. Sequentially consistent.

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef BEGIN_REREAD   /* the root is read again under the lease */
#define BEGIN_REREAD 1
#endif
#ifndef REREAD_LEASED  /* ... under it (0: before the lease is taken) */
#define REREAD_LEASED 1
#endif
#ifndef WAIT_REREAD    /* and after a wait, too */
#define WAIT_REREAD 1
#endif
#ifndef PUBLISH_CHECK  /* publish looks at the root first */
#define PUBLISH_CHECK 1
#endif

#define FREE 0
#define PENDING 2
#define LIVE 3
hidden byte claim_stale_hit, claim_published_after_flush, claim_dead_generation_left, claim_held_page;
byte root = 1; byte st = PENDING; byte par = 1; bool leased, flushed;

active proctype Publisher() { bool late;
  late = flushed;                               /* ghost: the flush was over when publish was called */
  if :: !PUBLISH_CHECK || root==par ->
        atomic { assert(!late || claim_published_after_flush); st = LIVE }
     :: else -> st = FREE fi
}
active proctype Flusher() { root = 2; flushed = true;
  do :: atomic { st==LIVE && par!=root && !leased -> st = FREE } od }

active proctype Reader() { byte g, tries; bool waited, over;
begin:
  g = root; over = false;
  if
  :: st==PENDING && par==g -> waited = true; st!=PENDING; goto match
  :: else -> goto match
  fi;
match:
  if
  :: st==LIVE && par==g ->
#if !REREAD_LEASED
     if :: root!=g -> goto again :: else fi;
#endif
     atomic { leased = true; over = (root!=g) };
     if :: st!=LIVE || par!=g -> leased = false; goto again :: else fi;
#if REREAD_LEASED
     if :: ((waited && WAIT_REREAD) || (!waited && BEGIN_REREAD)) && root!=g -> leased = false; goto again :: else fi;
#endif
     atomic { assert(!over || claim_stale_hit); assert(st==LIVE || claim_held_page) };
     leased = false
  :: else
  fi;
  goto end;
again:
  if :: tries < 2 -> tries++; goto begin :: else fi;
end: skip
}
active proctype Check() { timeout -> assert(!(st==LIVE && par!=root) || claim_dead_generation_left) }
