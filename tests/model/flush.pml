/* SPDX-License-Identifier: Apache-2.0
   Copyright The kvtrie authors

   Flush of a namespace by a new root generation, and reuse of a namespace's slot.

   Rules (DESIGN.md): 18 flush. Claims: once the workers are idle no Live page of a dead generation is
   left; a page is only ever matched under the generation that it was announced under, so two namespaces
   that use one slot after each other never share a page (C8).

   A worker bound to root generation g announces a page directly under the root and publishes it (no
   lease protects a root). The coordinator bumps the generation (flush) and evicts what hangs under a
   dead one. Then the slot, empty as far as it sees, is given to another namespace, whose reader looks for
   the same tokens.
   Sequentially consistent; one page. st: 0 Free 1 Writing 2 Pending 3 Live.

   Pan-run: -E

   Switches: each default is the protocol; another value is a mutant. */

#ifndef VICTIMS      /* rule 18: 2 every later round takes pages of dead generations; 0 one sweep after the
                        bump; 1 one sweep, and the announcement looks at the generation again under the lock */
#define VICTIMS 2
#endif
#ifndef MATCH_GEN    /* rule 18: a reader compares the root's generation */
#define MATCH_GEN 1
#endif
#ifndef REUSE_GROWS  /* rule 18: the generation goes on growing when the slot is used again (0: starts anew) */
#define REUSE_GROWS 1
#endif

hidden byte claim_dead_generation_left, claim_other_namespace;
byte root = 1, tenant = 1;
byte st = 0, par = 0, whose = 0;      /* whose: ghost, the tenant that wrote the page */
bool leased = false, lk = false;

active proctype Worker() { byte g;
  atomic { g = root; whose = tenant };
  st = 1; par = g;
  atomic { !lk -> lk = true };
#if VICTIMS==1
  if :: root != g -> st = 0; lk = false; goto out :: else fi;
#endif
  st = 2; lk = false;
  leased = true; st = 3;
  leased = false;
out: skip }

active proctype Coordinator() {
  root = 2;
  do
  :: atomic { st == 3 && par != root && !leased -> st = 0 }
  /* the coordinator sees no page of a dead generation; it cannot know who is still about to announce one */
  :: atomic { !(st==3 && par != root) || (VICTIMS!=2 && leased) -> break }
  od;
  atomic { tenant = 2; if :: REUSE_GROWS -> root = 3 :: else -> root = 1 fi };
  /* rounds go on */
  do :: atomic { VICTIMS==2 && st == 3 && par != root && !leased -> st = 0 } od
}
/* a reader of whatever tenant has the slot: state first, then the parent handle, then a hit */
active proctype Reader() { byte g, t;
  atomic { g = root; t = tenant };
  if :: st == 3 ->
#if MATCH_GEN
        if :: par == g -> assert(whose == t || claim_other_namespace) :: else fi
#else
        assert(whose == t || claim_other_namespace)
#endif
     :: else fi }
active proctype Check() { timeout -> assert(!(st == 3 && par != root) || claim_dead_generation_left) }
